"""Where the samples of a stream begin and end: cut every S tokens, or never inside a document.

    stream   [E a b c][E d e E][f g h i]      stride S, whatever lies there
    whole    [E a b c][E d e . ][E f . . ]    documents as they are; what is left over is filled up

Whole documents are placed by best fit, the longest first: each goes to the fullest sample that
still has room, and opens a new one where none has (Johnson 1973: at most 11/9 of the fewest
samples, and 4 more). Ties go to the earlier document and to the sample that was opened or filled
last, so the samples are a function of the lengths alone: the same on every rank, in every epoch and
after every stop. What is shuffled is their order.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from weft.data.stream import TokenStream
from weft.errors import DataError

Packing = Literal["auto", "stream", "whole"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cut:
    """The edges of the samples, in tokens of the documents in their order.

    `documents` is that order where it belongs to the cut, and None where every epoch has its own.

    Shapes:
        edges: samples + 1, increasing.
    """

    edges: NDArray[np.int64]
    documents: NDArray[np.int64] | None

    @property
    def num_samples(self) -> int:
        """The samples of an epoch."""
        return len(self.edges) - 1

    @property
    def is_whole(self) -> bool:
        """Whether a sample ends with its last document."""
        return self.documents is not None

    def span(self, sample: int) -> tuple[int, int]:
        """The tokens of a sample."""
        return int(self.edges[sample]), int(self.edges[sample + 1])


def cut(stream: TokenStream, *, sequence: int, packing: Packing) -> Cut:
    """The samples of a stream; "auto" leaves documents whole where some have a prompt.

    Raises:
        DataError: the stream is empty, or a document that is to stay whole is longer than a sample.
    """
    if stream.num_tokens < 1:
        raise DataError("the token stream is empty; expected a document; try another data.path")
    if packing == "whole" or (packing == "auto" and stream.masked.any()):
        return _whole(stream.lengths, sequence)
    samples = -(-stream.num_tokens // sequence)
    return Cut(edges=np.arange(samples + 1, dtype=np.int64) * sequence, documents=None)


def _whole(lengths: NDArray[np.int64], sequence: int) -> Cut:
    longest = int(lengths.max())
    if longest > sequence:
        many = int((lengths > sequence).sum())
        raise DataError(
            f"{many} of {len(lengths)} documents are longer than a sample, the longest has "
            f"{longest} tokens; expected at most data.sequence = {sequence}, since one with a "
            f'prompt is never cut; try data.sequence = {longest}, or data.packing = "stream"'
        )
    samples = best_fit(lengths, sequence)
    order = np.concatenate([np.array(held, np.int64) for held in samples])
    counts = np.cumsum([0, *map(len, samples)])
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[order])])
    return Cut(edges=starts[counts], documents=order)


def best_fit(lengths: NDArray[np.int64], room: int) -> list[list[int]]:
    """The documents of each sample, none of them longer than `room`.

    Example:
        >>> best_fit(np.array([3, 5, 2, 4]), 7)
        [[1, 2], [3, 0]]
    """
    samples: list[list[int]] = []
    free: dict[int, list[int]] = {}  # room that is left -> samples that have it
    sizes = 0  # the same as bits, so that the tightest fit is the lowest bit from a length on
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        fitting = sizes >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            sample = free[left].pop()
            sizes ^= 0 if free[left] else 1 << left
        else:
            left, sample = room, len(samples)
            samples.append([])
        samples[sample].append(document)
        free.setdefault(left - length, []).append(sample)
        sizes |= 1 << (left - length)
    return samples

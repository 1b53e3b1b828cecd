"""A corpus as tokens, and its documents in the order of an epoch, without a copy of either.

    tokens      E a b c E d e E f g h i        E starts a document and ends the one before it
    documents   [0, 4) [4, 7) [7, 12)          begins and lengths: the only index in memory
    order       2 0 1  ->  E f g h i E a b c E d e       read a window at a time

What the tokens are kept in is a matter of `Tokens`: an array, or files mapped into memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Tokens(Protocol):
    """Tokens that can be read in slices, each within one document."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> NDArray[Any]: ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenStream:
    """Documents as tokens, each started by `end_of_text`.

    The first `masked` tokens of a document ask for nothing: the token that follows one of them is
    read by the model, and is no target. They are those of a prompt.

    Shapes:
        begins, lengths, masked: one int64 a document.
    """

    tokens: Tokens
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]
    masked: NDArray[np.int64]
    num_tokens: int
    num_targets: int
    end_of_text: int

    @property
    def num_documents(self) -> int:
        """The documents of the stream."""
        return len(self.lengths)


def make_stream(
    tokens: Tokens,
    *,
    begins: NDArray[np.int64],
    lengths: NDArray[np.int64],
    masked: NDArray[np.int64],
    end_of_text: int,
) -> TokenStream:
    """The stream of some documents of a store of tokens."""
    num_tokens = int(lengths.sum())
    return TokenStream(
        tokens=tokens,
        begins=begins,
        lengths=lengths,
        masked=masked,
        num_tokens=num_tokens,
        num_targets=num_tokens - int(np.minimum(masked, lengths).sum()),
        end_of_text=end_of_text,
    )


def join(pieces: list[NDArray[Any]], masked: list[int], *, end_of_text: int) -> TokenStream:
    """The stream of documents that are in memory, given without the token that starts them.

    Example:
        >>> join([np.array([97, 98]), np.array([99])], [0, 0], end_of_text=256).tokens[:]
        array([256,  97,  98, 256,  99], dtype=uint16)
    """
    lengths = np.fromiter((len(piece) + 1 for piece in pieces), np.int64, len(pieces))
    stops = np.cumsum(lengths)
    total = int(stops[-1]) if len(stops) else 0
    largest = max((int(piece.max()) for piece in pieces if len(piece)), default=0)
    tokens = np.full(total, end_of_text, dtype_for(max(largest, end_of_text) + 1))
    begins = stops - lengths
    for begin, stop, piece in zip(begins.tolist(), stops.tolist(), pieces, strict=True):
        tokens[begin + 1 : stop] = piece
    return make_stream(
        tokens,
        begins=begins,
        lengths=lengths,
        masked=np.array(masked, np.int64),
        end_of_text=end_of_text,
    )


def dtype_for(vocabulary: int) -> Any:
    """The narrowest type of a token: 16 bits up to 65,536 ids, 32 above."""
    return np.uint16 if vocabulary <= np.iinfo(np.uint16).max + 1 else np.uint32


def subset(stream: TokenStream, documents: NDArray[np.int64]) -> TokenStream:
    """The stream of some of the documents, in the given order, over the same store."""
    return make_stream(
        stream.tokens,
        begins=stream.begins[documents],
        lengths=stream.lengths[documents],
        masked=stream.masked[documents],
        end_of_text=stream.end_of_text,
    )


class Ordered:
    """A stream with its documents in some order, read a window at a time."""

    def __init__(self, stream: TokenStream, documents: NDArray[np.int64] | None = None) -> None:
        self.stream = stream if documents is None else subset(stream, documents)
        lengths = self.stream.lengths
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        self._masked = np.minimum(self.stream.masked, lengths)
        self._plain = not self._masked.any()
        self._ignored = (
            self._starts[:0]
            if self._plain
            else np.concatenate([np.zeros(1, np.int64), np.cumsum(self._masked)])
        )

    def read(self, first: int, last: int) -> NDArray[np.int64]:
        """Tokens [first, last), fewer behind the end of the stream."""
        last = min(last, self.stream.num_tokens)
        window = np.empty(max(0, last - first), np.int64)
        for document, start, stop, into in self._pieces(first, last):
            begin = int(self.stream.begins[document])
            window[into : into + stop - start] = self.stream.tokens[begin + start : begin + stop]
        return window

    def asked(self, first: int, last: int) -> NDArray[np.bool_]:
        """Of tokens [first, last), whether the one that follows is a target."""
        answer = np.ones(last - first, np.bool_)
        if not self._plain:
            for document, start, stop, into in self._pieces(
                first, min(last, self.stream.num_tokens)
            ):
                ignored = int(np.clip(self._masked[document] - start, 0, stop - start))
                answer[into : into + ignored] = False
        answer[max(0, self.stream.num_tokens - first) :] = False
        return answer

    def num_asked(self, first: int, last: int) -> int:
        """How many of tokens [first, last) are followed by a target, without reading any."""
        return self._asked_before(last) - self._asked_before(first)

    def _asked_before(self, place: int) -> int:
        place = min(place, self.stream.num_tokens)
        if self._plain or place == 0:
            return place
        document = int(np.searchsorted(self._starts, place, side="left")) - 1
        inside = place - int(self._starts[document])
        return place - int(self._ignored[document]) - min(inside, int(self._masked[document]))

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
        """Each document of [first, last): its index, where in it to start and stop, to where."""
        if last <= first:
            return
        begin = int(np.searchsorted(self._starts, first, side="right")) - 1
        stop = int(np.searchsorted(self._starts, last, side="left"))
        starts = self._starts[begin : stop + 1].tolist()
        for index, (start, end) in enumerate(pairwise(starts)):
            low, high = max(start, first), min(end, last)
            if high > low:
                yield begin + index, low - start, high - start, low - first


def materialise(stream: TokenStream) -> TokenStream:
    """The same stream in memory, without its store."""
    return join(
        [
            stream.tokens[begin + 1 : begin + length]
            for begin, length in zip(stream.begins.tolist(), stream.lengths.tolist(), strict=True)
        ],
        stream.masked.tolist(),
        end_of_text=stream.end_of_text,
    )


def concatenate(streams: list[TokenStream]) -> TokenStream:
    """Streams that are in memory, one after the other."""
    begun = np.cumsum([0, *(len(stream.tokens) for stream in streams)])[:-1]
    return make_stream(
        np.concatenate([stream.tokens[:] for stream in streams]),
        begins=np.concatenate([s.begins + b for s, b in zip(streams, begun, strict=True)]),
        lengths=np.concatenate([stream.lengths for stream in streams]),
        masked=np.concatenate([stream.masked for stream in streams]),
        end_of_text=streams[0].end_of_text,
    )

"""How text becomes tokens: one byte, one token, and one more token that starts every document.

    document "ab", document "c"    ->    256 97 98 256 99

The token that starts a document is what ends the one before it: a model that has read `97 98` is
asked to predict 256. So there is one special token, every token of a stream has a successor, and
the successor of the last one is 256 too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft.errors import DataError

NUM_BYTE_VALUES = 256  # values of a byte: ids 0..255 are the bytes themselves
END_OF_TEXT = NUM_BYTE_VALUES
VOCABULARY = NUM_BYTE_VALUES + 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenStream:
    """Documents as tokens, one after the other; `starts` ends with the length of it all."""

    tokens: NDArray[np.uint16]
    starts: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """The tokens of the stream; as many as there are targets in it."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """The documents of the stream."""
        return len(self.starts) - 1


def encode(documents: Sequence[bytes]) -> TokenStream:
    """The documents as one stream of tokens, each started by END_OF_TEXT.

    Example:
        >>> encode([b"ab", b"c"]).tokens.tolist()
        [256, 97, 98, 256, 99]
    """
    lengths = np.fromiter((len(document) + 1 for document in documents), np.int64, len(documents))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    tokens = np.full(starts[-1], END_OF_TEXT, np.uint16)
    for start, stop, document in zip(starts[:-1], starts[1:], documents, strict=True):
        tokens[start + 1 : stop] = np.frombuffer(document, np.uint8)
    return TokenStream(tokens=tokens, starts=starts)


def reorder(stream: TokenStream, order: NDArray[np.int64]) -> NDArray[np.uint16]:
    """The tokens of the stream with its documents in the given order.

    Example:
        >>> reorder(encode([b"ab", b"c"]), np.array([1, 0])).tolist()
        [256, 99, 256, 97, 98]
    """
    starts, stops = stream.starts[order].tolist(), stream.starts[order + 1].tolist()
    return np.concatenate([stream.tokens[a:b] for a, b in zip(starts, stops, strict=True)])


def decode(tokens: Iterable[int]) -> str:
    """The text of some tokens, without END_OF_TEXT; bytes that are no UTF-8 become U+FFFD.

    Raises:
        DataError when a token is outside the vocabulary.

    Example:
        >>> decode([256, 104, 105])
        'hi'
    """
    ids = [int(token) for token in tokens]
    wrong = next((i for i in ids if not 0 <= i < VOCABULARY), None)
    if wrong is not None:
        raise DataError(
            f"token {wrong} is no byte; expected 0 to {VOCABULARY - 1}; sample from those ids only"
        )
    return bytes(i for i in ids if i != END_OF_TEXT).decode("utf-8", errors="replace")

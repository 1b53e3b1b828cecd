"""How text becomes tokens: one byte, one token, and one more token that starts every document.

    document "ab", document "c"    ->    256 97 98 256 99

The token that starts a document is what ends the one before it: a model that has read `97 98` is
asked to predict 256. So there is one special token, every token of a stream has a successor, and
the successor of the last one is 256 too. Tokens of more than a byte are `tokenizer`'s.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from weft.data.stream import TokenStream, join
from weft.errors import DataError

NUM_BYTE_VALUES = 256  # values of a byte: ids 0..255 are the bytes themselves
END_OF_TEXT = NUM_BYTE_VALUES
VOCABULARY = NUM_BYTE_VALUES + 1


def encode(documents: Sequence[bytes]) -> TokenStream:
    """The documents as one stream of tokens, each started by END_OF_TEXT.

    Example:
        >>> encode([b"ab", b"c"]).tokens[:].tolist()
        [256, 97, 98, 256, 99]
    """
    pieces = [np.frombuffer(document, np.uint8) for document in documents]
    return join(pieces, [0] * len(pieces), end_of_text=END_OF_TEXT)


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

"""What a source yields: documents, each with its name; and what becomes of the ones that are bad.

A document of plain text is trained on whole. One with a prompt is trained on its answer: the prompt
is read by the model and never asked of it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

from weft.errors import DataError

OnBad = Literal["stop", "skip"]

# Far above any page or book, and little enough that a tokenizer's memory, about 20 times its text,
# stays within that of a laptop: a longer line is more often a missing newline than a document.
LONGEST_BYTES = 1 << 26
_PROMPTED = b"\xff" * 8  # no length of a part is 2^64 - 1, so it cannot be taken for one


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Its name in the corpus, with forward slashes, and its bytes, those of a prompt apart."""

    name: str
    content: bytes
    prompt: bytes = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """Where a record keeps its text: in one field, or in a prompt and an answer."""

    text: str = "text"
    prompt: str | None = None
    answer: str | None = None


@final
class Sieve:
    """Stops at what is bad, or counts it and keeps the reasons."""

    def __init__(self, on_bad: OnBad) -> None:
        self.on_bad = on_bad
        self.skipped: list[str] = []

    def reject(self, error: DataError) -> None:
        """Raises the error, or notes it where bad documents are skipped."""
        if self.on_bad == "stop":
            raise error
        self.skipped.append(str(error))


def document_of(name: str, record: object, fields: Fields) -> Document:
    """The document of one record; an empty one has no content.

    Raises:
        ValueError with the reason: the record has no such field, or it holds no text.
    """
    if not isinstance(record, Mapping):
        raise ValueError(  # noqa: TRY004 (what is wrong is the data)
            f"the record is {type(record).__name__}, expected an object with fields"
        )
    if fields.prompt is None or fields.answer is None:
        return Document(name=name, content=_text(record, fields.text))
    return Document(
        name=name, content=_text(record, fields.answer), prompt=_text(record, fields.prompt)
    )


def _text(record: Mapping[Any, Any], field: str) -> bytes:
    if field not in record:
        raise ValueError(f"no field {field!r}, found {', '.join(map(repr, record))}")
    value = record[field]
    if not isinstance(value, str):
        raise ValueError(  # noqa: TRY004 (the same)
            f"field {field!r} is {type(value).__name__}, expected text"
        )
    content = value.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, a ValueError
    if len(content) > LONGEST_BYTES:
        raise ValueError(f"field {field!r} has {len(content)} bytes, at most {LONGEST_BYTES} fit")
    return content


def digest_documents(documents: Iterable[Document]) -> str:
    """The SHA-256 over names and contents, each after its length: no two corpora read alike.

    Example:
        >>> one = digest_documents([Document(name="a", content=b"bc")])
        >>> one == digest_documents([Document(name="ab", content=b"c")])
        False
    """
    digest = Digest()
    for document in documents:
        digest.add(document)
    return digest.value()


@final
class Digest:
    """The digest of documents that pass by one at a time."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, document: Document) -> None:
        """Takes in the next document."""
        # NOTE: a file name need not be valid UTF-8; surrogateescape gives its bytes back.
        parts = [document.name.encode("utf-8", "surrogateescape"), document.content]
        if document.prompt:
            self._sha256.update(_PROMPTED)
            parts.append(document.prompt)
        for part in parts:
            self._sha256.update(len(part).to_bytes(8, "little"))
            self._sha256.update(part)

    def value(self) -> str:
        """The digest so far."""
        return self._sha256.hexdigest()

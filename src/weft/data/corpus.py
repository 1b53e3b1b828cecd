"""Which bytes are trained on: the documents of a corpus, their digest, and the ones held back.

    source "stdlib"        the interpreter's own library, *.py without tests and installed packages
    source "text"          one file, or every file below a folder that is not hidden
    source "jsonl"         one JSON object a line
    source "parquet"       one row a document
    source "hugging_face"  a streamed data set

The corpus is read once, whole, into memory: a file that changes during a run changes nothing, and
the digest says on resume whether the bytes are still the same. A corpus too large for that is
prepared first (`prepared`). Cutting into tokens is `tokenizer`.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from weft.data.document import Document, Fields, OnBad, Sieve, digest_documents
from weft.data.sources import hugging_face, jsonl, parquet, text
from weft.data.sources.part import Part
from weft.errors import DataError

Source = Literal["stdlib", "text", "jsonl", "parquet", "hugging_face"]

PART_BYTES = 1 << 26  # seconds of a worker's time, so that little is lost when it is killed
WHOLE_BYTES = 1 << 30  # what every rank may hold in memory, and cut again at each start


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """How a source is cut in parts, and how a part is read."""

    cut: Callable[[str | Path | None, int], list[Part]]
    read: Callable[[Part, Fields, Sieve], Iterator[Document]]


READERS: Mapping[Source, Reader] = MappingProxyType(
    {
        "stdlib": Reader(cut=text.cut_library, read=text.read),
        "text": Reader(cut=text.cut, read=text.read),
        "jsonl": Reader(cut=jsonl.cut, read=jsonl.read),
        "parquet": Reader(cut=parquet.cut, read=parquet.read),
        "hugging_face": Reader(cut=hugging_face.cut, read=hugging_face.read),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The documents in order of name, their digest, the names of empty ones, and what was bad."""

    documents: tuple[Document, ...]
    digest: str
    empty: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """The bytes of all documents."""
        return sum(len(document.content) for document in self.documents)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The documents to train on and the ones held back, each in order of name, neither empty."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]


def read_corpus(
    source: Source,
    path: str | Path | None = None,
    *,
    fields: Fields | None = None,
    on_bad: OnBad = "stop",
    whole_bytes: int = WHOLE_BYTES,
) -> Corpus:
    """Reads a corpus whole, checks that it is text and digests it.

    An empty document, or one with an empty answer, is none: it is left out, and listed.

    Raises:
        DataError naming the file, the place and the reason, when something cannot be read or is no
        text, or when nothing is left to train on.
    """
    reader, sieve = READERS[source], Sieve(on_bad)
    read: list[Document] = []
    left = whole_bytes
    for part in reader.cut(path, PART_BYTES):
        for document in reader.read(part, fields or Fields(), sieve):
            read.append(document)
            left -= len(document.content) + len(document.prompt)
            if left < 0:
                raise _too_large(path, whole_bytes)
    documents = tuple(document for document in read if document.content)
    if not documents:
        raise DataError(
            f"the corpus at {path} has no text: found {len(read)} document(s), all empty; "
            "expected at least two with text; try another data.path"
        )
    return Corpus(
        documents=documents,
        digest=digest_documents(documents),
        empty=tuple(document.name for document in read if not document.content),
        skipped=tuple(sieve.skipped),
    )


def texts(source: Source, path: str | None, *, fields: Fields, most_bytes: int) -> Iterator[str]:
    """The texts of a corpus one at a time, up to about so many bytes of them.

    Raises:
        DataError: a document cannot be read.
    """
    left, reader = most_bytes, READERS[source]
    for part in reader.cut(path, PART_BYTES):
        for document in reader.read(part, fields, Sieve("stop")):
            yield document.content.decode("utf-8")
            left -= len(document.content)
            if left <= 0:
                return


def split_corpus(corpus: Corpus, *, seed: int, validation_bytes: int) -> Split:
    """Holds back whole documents, in an order hashed from seed and name, up to `validation_bytes`.

    A document larger than `validation_bytes` is held back only when the smaller ones do not
    suffice; otherwise one big file could be most of the validation. So validation has fewer than
    twice the bytes asked for, where it can.

    Raises:
        DataError when either side would be empty.
    """
    drawn = sorted(
        corpus.documents,
        key=lambda document: (
            len(document.content) > validation_bytes,
            hashlib.sha256(f"{seed}/{document.name}".encode("utf-8", "surrogateescape")).digest(),
        ),
    )
    held: set[str] = set()
    held_bytes = 0
    for document in drawn:
        if held_bytes >= validation_bytes:
            break
        held.add(document.name)
        held_bytes += len(document.content)
    train = tuple(document for document in corpus.documents if document.name not in held)
    if not train or not held:
        raise nothing_left(
            has_validation=bool(held),
            found=f"{len(corpus.documents)} file(s) of {corpus.num_bytes} bytes",
            validation_bytes=validation_bytes,
        )
    return Split(train=train, validation=tuple(d for d in corpus.documents if d.name in held))


def nothing_left(*, has_validation: bool, found: str, validation_bytes: int) -> DataError:
    """The error of a corpus of which one side would be empty."""
    side, trial = ("training", "smaller") if has_validation else ("validation", "larger")
    return DataError(
        f"no file is left for {side}: found {found} and data.validation_bytes = "
        f"{validation_bytes}; expected whole documents on both sides; try a {trial} "
        "data.validation_bytes, or cut the text into more files"
    )


def _too_large(path: str | Path | None, limit: int) -> DataError:
    return DataError(
        f"the corpus at {path} has more than {limit} bytes of text; expected one that every rank "
        "can hold in memory; try weft data prepare, and train from the folder it writes"
    )

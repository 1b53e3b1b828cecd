"""Which bytes are trained on: the files of a corpus, their digest, and the ones held back.

    source "stdlib"  the interpreter's own library, *.py without tests and installed packages
    source "text"    one file, or every file below a folder that is not hidden

A document is the content of one file. The corpus is read once, whole, into memory: a file that
changes during a run changes nothing, and the digest says on resume whether the bytes are still the
same. Cutting into tokens is `tokens`.
"""

import hashlib
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weft.errors import DataError

Source = Literal["stdlib", "text"]

# Folders of the standard library that hold test suites or somebody else's packages. The test suites
# are also the only part of it with files that are invalid UTF-8 on purpose.
NOT_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One file: its name relative to the corpus, with forward slashes, and its bytes."""

    name: str
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The documents in order of name, their digest, and the files that were empty."""

    documents: tuple[Document, ...]
    digest: str
    empty: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """The bytes of all documents."""
        return sum(len(document.content) for document in self.documents)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The documents to train on and the ones held back, each in order of name, neither empty."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]


def read_corpus(source: Source, path: str | Path | None = None) -> Corpus:
    """Reads a corpus whole, checks that it is UTF-8 and digests it.

    An empty file is no document: it is left out, and listed.

    Raises:
        DataError naming the file, the byte and the reason, when a file cannot be read or is not
        UTF-8, or when nothing is left to train on.
    """
    root, files = _list_files(source, path)
    named = sorted((file.relative_to(root).as_posix(), file) for file in files)
    read = [Document(name=name, content=_read_text(file)) for name, file in named]
    documents = tuple(document for document in read if document.content)
    if not documents:
        raise DataError(
            f"the corpus at {root} has no text: found {len(read)} file(s), all empty; "
            "expected at least two files with text; try another data.path"
        )
    empty = tuple(document.name for document in read if not document.content)
    return Corpus(documents=documents, digest=digest_documents(documents), empty=empty)


def digest_documents(documents: Iterable[Document]) -> str:
    """The SHA-256 over names and contents, each after its length: no two corpora read alike.

    Example:
        >>> one = digest_documents([Document(name="a", content=b"bc")])
        >>> one == digest_documents([Document(name="ab", content=b"c")])
        False
    """
    digest = hashlib.sha256()
    for document in documents:
        # NOTE: a file name need not be valid UTF-8; surrogateescape gives its bytes back.
        for part in (document.name.encode("utf-8", "surrogateescape"), document.content):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


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
        side, trial = ("training", "smaller") if held else ("validation", "larger")
        raise DataError(
            f"no file is left for {side}: found {len(corpus.documents)} file(s) of "
            f"{corpus.num_bytes} bytes and data.validation_bytes = {validation_bytes}; expected "
            f"whole files on both sides; try a {trial} data.validation_bytes, or cut the text "
            "into more files"
        )
    return Split(train=train, validation=tuple(d for d in corpus.documents if d.name in held))


def _list_files(source: Source, path: str | Path | None) -> tuple[Path, list[Path]]:
    if source == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        files = (file for file in _walk(root, skipped=NOT_LIBRARY) if file.suffix == ".py")
    elif path is None:
        raise DataError(
            'data.source = "text" needs data.path, which was not set; try a folder of text files'
        )
    else:
        root = Path(path)
        if not root.exists():
            raise DataError(
                f"no file or folder at data.path = {root}; expected text; check the spelling"
            )
        if not root.is_dir():
            return root.parent, [root]
        files = _walk(root, skipped=frozenset())
    found = list(files)
    if not found:
        raise DataError(
            f"no files to read below {root}; expected text that is not hidden; "
            "try another data.path"
        )
    return root, found


def _walk(root: Path, *, skipped: frozenset[str]) -> Iterator[Path]:
    for folder, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise DataError(
        f"cannot list {error.filename}: {error.strerror}; expected a readable folder"
    ) from error


def _read_text(file: Path) -> bytes:
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # NOTE: reading a named pipe would wait for ever
            raise DataError(
                f"{file} is not a regular file; expected text; move it out of data.path"
            )
        content = file.read_bytes()
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not valid UTF-8 at byte {error.start}: {error.reason}; "
            "expected UTF-8 text; convert the file or move it out of data.path"
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}; expected a readable file; check its rights"
        ) from error
    return content

"""Text files: the interpreter's own library, or the user's. A document is one file's content."""

import stat
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from weft.data.document import LONGEST_BYTES, Document, Fields, Sieve
from weft.data.sources.part import Part, in_parts, walk
from weft.errors import DataError

# Folders of the standard library that hold test suites or somebody else's packages. The test suites
# are also the only part of it with files that are invalid UTF-8 on purpose.
NOT_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)


def cut_library(_path: str | Path | None, part_bytes: int) -> list[Part]:
    """The standard library, *.py without tests and installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in walk(root, skipped=NOT_LIBRARY) if file.suffix == ".py"]
    return _parts(root, files, part_bytes)


def cut(path: str | Path | None, part_bytes: int) -> list[Part]:
    """One file, or every file below a folder that is not hidden, in order of name."""
    if path is None:
        raise DataError(
            'data.source = "text" needs data.path, which was not set; try a folder of text files'
        )
    root = Path(path)
    if not root.exists():
        raise DataError(
            f"no file or folder at data.path = {root}; expected text; check the spelling"
        )
    if not root.is_dir():
        return _parts(root.parent, [root], part_bytes)
    return _parts(root, list(walk(root, skipped=frozenset())), part_bytes)


def read(part: Part, _fields: Fields, sieve: Sieve) -> Iterator[Document]:
    """The files of a part; an empty one is a document without content."""
    for name in part.files:
        try:
            yield Document(name=name, content=_read_text(Path(part.root, name)))
        except DataError as error:
            sieve.reject(error)


def _parts(root: Path, files: list[Path], part_bytes: int) -> list[Part]:
    if not files:
        raise DataError(
            f"no files to read below {root}; expected text that is not hidden; "
            "try another data.path"
        )
    names = sorted(file.relative_to(root).as_posix() for file in files)
    sizes = [_size(root / name) for name in names]
    return [
        Part(
            root=str(root),
            files=tuple(names[first:last]),
            first=first,
            last=last,
            num_bytes=sum(sizes[first:last]),
        )
        for first, last in in_parts(len(names), lambda i: sizes[i], limit=part_bytes)
    ]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # reading it will say why
        return 0


def _read_text(file: Path) -> bytes:
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):  # NOTE: reading a named pipe would wait for ever
            raise DataError(
                f"{file} is not a regular file; expected text; move it out of data.path"
            )
        if found.st_size > LONGEST_BYTES:
            raise DataError(
                f"{file} has {found.st_size} bytes; expected a document of at most "
                f"{LONGEST_BYTES}; cut it into more files"
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

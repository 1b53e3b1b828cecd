"""JSON lines: one object a line, with its text in a field, or a prompt and an answer in two.

A file is cut at any byte: a line belongs to the part in which its first byte lies.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from weft.data.document import LONGEST_BYTES, Document, Fields, Sieve, document_of
from weft.data.sources.part import Part, list_files
from weft.errors import DataError

_LONGEST_LINE = 2 * LONGEST_BYTES  # escapes, and the other fields of the record
_COUNTED_BYTES = 1 << 20  # of a read that only counts lines


def cut(path: str | Path | None, part_bytes: int) -> list[Part]:
    """One file, or the *.jsonl files below a folder, in stretches of about `part_bytes`."""
    root, names = list_files(path, (".jsonl", ".ndjson"))
    return [
        Part(root=str(root), files=(name,), first=first, last=last, num_bytes=last - first)
        for name in names
        for size in [Path(root, name).stat().st_size]
        for first in range(0, max(size, 1), part_bytes)
        for last in [min(size, first + part_bytes)]
    ]


def read(part: Part, fields: Fields, sieve: Sieve) -> Iterator[Document]:
    """The documents of the lines that start in a part; blank lines are no records."""
    (name,) = part.files
    path = Path(part.root, name)
    try:
        with path.open("rb") as file:
            for offset, line in _lines(file, part, path, sieve):
                try:
                    yield document_of(f"{name}:{offset}", json.loads(line), fields)
                except (ValueError, RecursionError) as error:
                    sieve.reject(_bad(path, offset, _reason(error, line)))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; expected a readable file; check its rights"
        ) from error


def _lines(file: IO[bytes], part: Part, path: Path, sieve: Sieve) -> Iterator[tuple[int, bytes]]:
    """The offset and content of every line that starts in the part."""
    if part.first:  # a line that starts exactly there follows a newline
        file.seek(part.first - 1)
        _pass_line(file)
    while (offset := file.tell()) < part.last:
        line = file.readline(_LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > _LONGEST_LINE:
            _pass_line(file)
            sieve.reject(_bad(path, offset, f"longer than {_LONGEST_LINE} bytes"))
        elif line.strip():
            yield offset, line


def _pass_line(file: IO[bytes]) -> None:
    while (piece := file.readline(_COUNTED_BYTES)) and not piece.endswith(b"\n"):
        pass


def _bad(path: Path, offset: int, reason: str) -> DataError:
    return DataError(
        f"{path}, line {_line_number(path, offset)} (byte {offset}): {reason}; expected one JSON "
        'object with text; repair the line, or try data.on_bad = "skip"'
    )


def _reason(error: Exception, line: bytes) -> str:
    match error:
        case UnicodeDecodeError():
            return f"not valid UTF-8 at byte {error.start} of the line: {error.reason}"
        case UnicodeEncodeError():
            return f"no valid text: {error.reason}"
        case json.JSONDecodeError():
            return f"not JSON at character {error.pos + 1} of {len(line)}: {error.msg}"
        case RecursionError():
            return "not a record: nested too deeply"
        case _:
            return str(error)


def _line_number(path: Path, offset: int) -> int:
    """The number of the line at an offset, counted only when somebody needs to find it."""
    lines, left = 1, offset
    with path.open("rb") as file:
        while left and (block := file.read(min(left, _COUNTED_BYTES))):
            lines += block.count(b"\n")
            left -= len(block)
    return lines

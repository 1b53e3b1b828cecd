"""A part of a source: what one worker reads from its beginning to its end."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from weft.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A stretch of a source.

    Files stand relative to `root`; what `first` and `last` count is the source's own: bytes of a
    JSONL file, row groups of a parquet file, shards of a streamed data set.
    """

    root: str
    files: tuple[str, ...]
    first: int
    last: int
    num_bytes: int


def list_files(path: str | Path | None, suffixes: tuple[str, ...]) -> tuple[Path, list[str]]:
    """A folder and the files below it that end so and are not hidden, in order of name; or a file.

    Raises:
        DataError: there is no such place, or nothing to read in it.
    """
    if path is None:
        raise DataError("data.path was not set; expected a file or a folder; try --path or --set")
    root = Path(path)
    if not root.exists():
        raise DataError(
            f"no file or folder at data.path = {root}; expected {' or '.join(suffixes)} files; "
            "check the spelling"
        )
    if not root.is_dir():
        return root.parent, [root.name]
    found = sorted(
        file.relative_to(root).as_posix()
        for file in walk(root, skipped=frozenset())
        if file.name.endswith(suffixes)
    )
    if not found:
        raise DataError(
            f"no files to read below {root}; expected names that end in {' or '.join(suffixes)}; "
            "try another data.path"
        )
    return root, found


def walk(root: Path, *, skipped: frozenset[str]) -> Iterator[Path]:
    """Every file below a folder, without hidden ones and without folders of those names."""
    for folder, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise DataError(
        f"cannot list {error.filename}: {error.strerror}; expected a readable folder"
    ) from error


def in_parts(count: int, weight: Callable[[int], int], *, limit: int) -> list[tuple[int, int]]:
    """Consecutive ranges of `count` things, each of at least one and otherwise within `limit`.

    Example:
        >>> in_parts(4, lambda i: [5, 5, 20, 1][i], limit=10)
        [(0, 2), (2, 3), (3, 4)]
    """
    ranges: list[tuple[int, int]] = []
    first, total = 0, 0
    for index in range(count):
        if index > first and total + weight(index) > limit:
            ranges.append((first, index))
            first, total = index, 0
        total += weight(index)
    return [*ranges, (first, count)] if count > first else ranges

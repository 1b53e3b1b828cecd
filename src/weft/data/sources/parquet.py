"""Parquet files: one record a row, cut at row groups. Needs pyarrow: `weft[parquet]`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weft.data.document import Document, Fields, Sieve, document_of
from weft.data.sources.part import Part, in_parts, list_files
from weft.errors import DataError

_BATCH_ROWS = 1024  # rows in memory at a time; a row group may have a million


def cut(path: str | Path | None, part_bytes: int) -> list[Part]:
    """One file, or the *.parquet files below a folder, in runs of row groups."""
    root, names = list_files(path, (".parquet",))
    return [part for name in names for part in _cut_file(root, name, part_bytes)]


def read(part: Part, fields: Fields, sieve: Sieve) -> Iterator[Document]:
    """The documents of the rows of a part; only the columns of text are read."""
    (name,) = part.files
    path = Path(part.root, name)
    wanted = [fields.text] if fields.prompt is None else [fields.prompt, str(fields.answer)]
    file = _open(path)
    found = file.schema_arrow.names
    missing = [column for column in wanted if column not in found]
    if missing:
        raise DataError(
            f"{path}: no column {missing[0]!r}; found {', '.join(found)}; set data.text_field"
        )
    row = 0
    groups = list(range(part.first, part.last))
    try:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=wanted):
            for record in batch.to_pylist():
                place = f"{name}:{part.first}:{row}"
                row += 1
                try:
                    yield document_of(place, record, fields)
                except ValueError as error:
                    sieve.reject(_bad(path, part.first, row - 1, error))
    except OSError as error:  # pyarrow's error of damaged pages
        raise _unreadable(path, error) from error


def _cut_file(root: Path, name: str, part_bytes: int) -> list[Part]:
    metadata = _open(root / name).metadata
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    return [
        Part(root=str(root), files=(name,), first=a, last=b, num_bytes=sum(sizes[a:b]))
        for a, b in in_parts(len(sizes), lambda i: sizes[i], limit=part_bytes)
    ]


def _open(path: Path) -> Any:
    try:
        from pyarrow import parquet  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(
            f"{path} needs pyarrow, which is not installed; expected the extra weft[parquet]; "
            "try pip install 'weft[parquet]'"
        ) from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
        raise _unreadable(path, error) from error


def _bad(path: Path, group: int, row: int, error: ValueError) -> DataError:
    return DataError(
        f"{path}, row {row} from row group {group} on: {error}; expected text; repair the row, or "
        'try data.on_bad = "skip"'
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read as parquet: {error}; expected a whole file; fetch it anew"
    )

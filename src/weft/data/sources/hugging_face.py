"""Data sets of Hugging Face, streamed: `weft[datasets]`. Runs no code of a data set.

    path "folder"         files of a folder on this machine, or a data set of the hub
    path "name:config"    one of its configurations

A streamed data set comes in shards of its own, as many as it has files, and is cut there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weft.data.document import Document, Fields, Sieve, document_of
from weft.data.sources.part import Part
from weft.errors import DataError

SPLIT = "train"


def cut(path: str | Path | None, _part_bytes: int) -> list[Part]:
    """The shards of a data set; their sizes are not known before they are read."""
    shards = _open(str(path)).num_shards
    return [
        Part(root=str(path), files=(), first=shard, last=shard + 1, num_bytes=0)
        for shard in range(shards)
    ]


def read(part: Part, fields: Fields, sieve: Sieve) -> Iterator[Document]:
    """The documents of a shard."""
    opened = _open(part.root)
    shard = opened.shard(num_shards=opened.num_shards, index=part.first)
    for row, record in enumerate(shard):
        try:
            yield document_of(f"{part.first}:{row}", record, fields)
        except ValueError as error:
            sieve.reject(
                DataError(
                    f"{part.root}, shard {part.first}, record {row}: {error}; expected text; set "
                    'data.text_field, or try data.on_bad = "skip"'
                )
            )


def _open(path: str) -> Any:
    try:
        import datasets  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(
            f"{path} needs datasets, which is not installed; expected the extra weft[datasets]; "
            "try pip install 'weft[datasets]'"
        ) from None
    name, _, config = path.partition(":")
    try:
        return datasets.load_dataset(name, config or None, split=SPLIT, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path} cannot be opened as a data set: {error}; expected a folder or a name with a "
            f'split "{SPLIT}"; check the spelling'
        ) from error

"""A prepared folder as one stream: all shards in a row, of which only the index is in memory."""

from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from weft.data.prepared.manifest import Manifest, read_manifest
from weft.data.prepared.shard import ShardTokens, damaged, read_index
from weft.data.stream import TokenStream, make_stream
from weft.data.tokenizer import BYTES, Tokenizer
from weft.errors import DataError

_MOST_OPEN = 512  # files: half of what a process may have open by default


@final
class Shards:
    """The tokens of several shards in a row; no document, and so no slice, crosses a boundary."""

    def __init__(self, shards: list[ShardTokens]) -> None:
        self._shards = shards
        self._starts = np.cumsum([0, *map(len, shards)])
        self._open: dict[int, None] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, place: slice, /) -> NDArray[Any]:
        first, last, _ = place.indices(len(self))
        shard = int(np.searchsorted(self._starts, first, side="right")) - 1
        if shard == len(self._shards):
            return np.zeros(0, np.uint16)
        start = int(self._starts[shard])
        assert last <= self._starts[shard + 1], f"{first=} {last=} cross the end of {shard=}"
        self._open[shard] = self._open.pop(shard, None)  # the latest one stands last
        if len(self._open) > _MOST_OPEN:
            oldest = next(iter(self._open))
            del self._open[oldest]
            self._shards[oldest].close()
        return self._shards[shard][first - start : last - start]


def open_prepared(path: str | Path, tokenizer: Tokenizer) -> tuple[TokenStream, Manifest]:
    """The stream of a prepared folder.

    Raises:
        DataError: a shard is damaged, or was made with another tokenizer.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    check_tokenizer(folder, manifest, tokenizer)
    indices = [
        read_index(folder, shard, token_bytes=manifest.token_bytes) for shard in manifest.shards
    ]
    wrong = [shard for shard in manifest.shards if shard.max_token >= tokenizer.size]
    if wrong:
        found = f"token {wrong[0].max_token}, expected less than {tokenizer.size}"
        raise damaged(folder / f"{wrong[0].name}.bin", found)
    shards = [
        ShardTokens(folder, shard, index, token_bytes=manifest.token_bytes)
        for shard, index in zip(manifest.shards, indices, strict=True)
    ]
    lengths = np.concatenate([np.zeros(0, np.int64), *(index.lengths for index in indices)])
    stream = make_stream(
        Shards(shards),
        begins=np.cumsum(lengths) - lengths,
        lengths=lengths,
        masked=np.concatenate([np.zeros(0, np.int64), *(index.masked for index in indices)]),
        end_of_text=manifest.end_of_text,
    )
    if not stream.num_documents:
        raise DataError(f"{folder} has no document; expected text; prepare another corpus")
    return stream, manifest


def check_tokenizer(folder: Path, manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Returns when a folder was prepared with this tokenizer.

    Raises:
        DataError: it was another one; tells which.
    """
    if manifest.tokenizer_digest != tokenizer.digest:
        copy = folder / "tokenizer.json" if manifest.tokenizer != BYTES else BYTES
        raise DataError(
            f"{folder} was prepared with the tokenizer {manifest.tokenizer}, the recipe has "
            f'data.tokenizer = "{tokenizer.name}"; try data.tokenizer = "{copy}"'
        )


def verify_prepared(path: str | Path) -> Manifest:
    """Reads a prepared folder whole and compares every size and checksum.

    Raises:
        DataError: something is damaged.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        index = read_index(folder, shard, token_bytes=manifest.token_bytes)
        ShardTokens(folder, shard, index, token_bytes=manifest.token_bytes).check_all()
    return manifest

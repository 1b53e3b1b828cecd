"""How a run finds its last good checkpoint and reads any range of any tensor in it."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weft.checkpoint.digest import crc32_of
from weft.checkpoint.format import Entry, Kind, Manifest, group_entries
from weft.checkpoint.prune import list_checkpoints
from weft.checkpoint.verify import check_headers, damaged, verify, verify_structure
from weft.errors import CheckpointError


def find_latest(run_dir: Path, *, report: Callable[[str], None] = warnings.warn) -> Path | None:
    """The newest checkpoint that is what it was when written; None when the run has none.

    Each one that is passed over is reported with the reason, and stays where it is.

    Raises:
        CheckpointError when there are checkpoints and none is good.
    """
    found = list_checkpoints(run_dir)
    for folder in found:
        try:
            verify(folder)
        except CheckpointError as error:
            report(str(error))
        else:
            return folder
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {run_dir} is good; expected one to resume "
            "from; set another train.run_dir to start anew, and keep this one to look at"
        )
    return None


class Checkpoint:
    """A checkpoint opened for reading: its manifest, and ranges of its tensors on demand.

    Example:
        with Checkpoint.open(folder) as checkpoint:
            rows = checkpoint.read("master", "layers.0.q", start, stop)
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._pieces = group_entries(manifest.entries)
        self._shards: dict[str, safe_open] = {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Opens a checkpoint after reading and verifying all of it.

        Raises:
            CheckpointError
        """
        return cls(folder, verify(folder))

    @classmethod
    def open_verified(cls, folder: Path) -> Self:
        """Opens a checkpoint that another rank has verified: all but the file digests is checked.

        Raises:
            CheckpointError
        """
        manifest = verify_structure(folder)
        check_headers(folder, manifest)
        return cls(folder, manifest)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the shard files."""
        self._shards.clear()

    def names(self, kind: Kind) -> list[str]:
        """The names of the tensors of a kind, sorted."""
        return sorted(name for held, name in self._pieces if held == kind)

    def shape(self, kind: Kind, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            CheckpointError when there is no such tensor.
        """
        return self._find(kind, name)[0].shape

    def read(self, kind: Kind, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop) of a flattened tensor, from the pieces that overlap them.

        A piece that is read whole is checked against its CRC once more.

        Shapes:
            stop - start

        Raises:
            CheckpointError when there is no such tensor or range, or a piece has changed.
        """
        pieces = self._find(kind, name)
        numel = math.prod(pieces[0].shape)
        stop = numel if stop is None else stop
        if not 0 <= start <= stop <= numel:
            raise CheckpointError(
                f"{kind} {name} in {self.folder} has {numel} elements, shape {pieces[0].shape}; "
                f"expected to read [{start}, {stop}); check that the recipe is that of the run"
            )
        result = torch.empty(stop - start, dtype=getattr(torch, pieces[0].dtype))
        for piece in pieces:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                result[first - start : last - start] = self._read_piece(piece, first, last)
        return result

    def _find(self, kind: Kind, name: str) -> list[Entry]:
        if (kind, name) not in self._pieces:
            raise CheckpointError(
                f"checkpoint {self.folder} has no {kind} {name}; expected it among the "
                f"{len(self._pieces)} tensors; check that the recipe is that of the run"
            )
        return self._pieces[kind, name]

    def _read_piece(self, piece: Entry, first: int, last: int) -> Tensor:
        try:
            if piece.file not in self._shards:
                self._shards[piece.file] = safe_open(self.folder / piece.file, framework="pt")
            shard = self._shards[piece.file]
            part = shard.get_slice(piece.key)[first - piece.start : last - piece.start]
        except (SafetensorError, OSError) as error:
            raise damaged(self.folder, f"{piece.file} cannot be read ({error})") from None
        if (first, last) == (piece.start, piece.stop) and crc32_of(part) != piece.crc32:
            raise damaged(self.folder, f"{piece.key} in {piece.file} has changed")
        return part

"""The same checkpoint cut into another number of shard files.

What is in a checkpoint does not depend on the layout that wrote it, so any run reads any of them;
fewer or more files suit a file system or a number of readers. Values are copied, never computed:
each tensor has the bits, and each expert the fingerprint, that it had.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from weft.checkpoint.digest import crc32_of
from weft.checkpoint.format import Manifest, group_entries, step_name
from weft.checkpoint.load import Checkpoint
from weft.checkpoint.save import Piece, Progress, save_shards
from weft.errors import CheckpointError


def convert(source: Path, run_dir: Path, *, shards: int) -> Path:
    """Writes a good checkpoint again in that many shard files; returns its folder in `run_dir`.

    Raises:
        CheckpointError: the source is damaged, the target exists or cannot be written, or what was
            written is not what was read.
    """
    with Checkpoint.open(source) as checkpoint:
        manifest = checkpoint.manifest
        folder = run_dir / step_name(manifest.step)
        if folder.exists():
            raise CheckpointError(
                f"{folder} exists; expected a place of its own; convert to another folder"
            )
        progress = Progress(step=manifest.step, config=manifest.config, data=manifest.data)
        parts = [partial(_read, checkpoint, number, shards) for number in range(shards)]
        written = save_shards(run_dir, parts, progress=progress)
        _compare(checkpoint, written)
    return written


def _read(checkpoint: Checkpoint, number: int, shards: int) -> list[Piece]:
    """The pieces of one shard: an even part of every tensor."""
    return list(_pieces(checkpoint, number, shards))


def _pieces(checkpoint: Checkpoint, number: int, shards: int) -> Iterator[Piece]:
    for pieces in group_entries(checkpoint.manifest.entries).values():
        kind, name = pieces[0].kind, pieces[0].name
        numel = pieces[-1].stop
        start, stop = numel * number // shards, numel * (number + 1) // shards
        if start < stop:
            yield Piece(
                kind=kind,
                name=name,
                shape=pieces[0].shape,
                start=start,
                stop=stop,
                tensor=checkpoint.read(kind, name, start, stop),
            )


def _compare(source: Checkpoint, written: Path) -> None:
    """Checks what was written against what was read, tensor by tensor."""
    with Checkpoint.open(written) as copy:
        if copy.manifest.fingerprints != source.manifest.fingerprints:
            raise CheckpointError(f"{written} holds other experts than {source.folder}; remove it")
        for pieces in group_entries(source.manifest.entries).values():
            kind, name = pieces[0].kind, pieces[0].name
            if crc32_of(copy.read(kind, name)) != crc32_of(source.read(kind, name)):
                raise CheckpointError(f"{written} has another {kind} {name}; remove it")


def describe(folder: Path, manifest: Manifest) -> str:
    """What a manifest says of its checkpoint, in some lines; the bytes are not looked at."""
    groups = group_entries(manifest.entries)
    kinds = sorted({kind for kind, _ in groups})
    model = manifest.config.get("model")
    parallel = manifest.config.get("parallel")
    mib = sum(file.num_bytes for file in manifest.files) / 2**20
    lines = [
        f"{folder}",
        f"  step        {manifest.step}",
        f"  written by  weft {manifest.weft}",
        f"  model       {_brief(model, ('family', 'layers', 'hidden', 'experts', 'top_k'))}",
        f"  layout      {_brief(parallel, ('pp', 'dp', 'sp', 'ep'))}",
        f"  data        {_brief(manifest.data, tuple(sorted(manifest.data)))}",
        f"  files       {len(manifest.files)}, {mib:.1f} MiB",
        f"  experts     {len(manifest.fingerprints)}",
    ]
    for kind in kinds:
        held = [pieces for (of, _), pieces in groups.items() if of == kind]
        elements = sum(pieces[-1].stop for pieces in held)
        dtypes = ", ".join(sorted({pieces[0].dtype for pieces in held}))
        lines.append(f"  {kind:<11} {len(held)} tensors, {elements:,} elements, {dtypes}")
    return "\n".join(lines)


def _brief(table: object, keys: tuple[str, ...]) -> str:
    if not isinstance(table, dict):
        return "not said"
    return ", ".join(f"{key} {table[key]}" for key in keys if key in table)

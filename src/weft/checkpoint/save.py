"""How a checkpoint is written so that at any moment it is either absent or whole.

    every rank   step-N.partial/rank-R.safetensors, fsync; then rank-R.json, what it wrote, fsync
    barrier
    rank 0       manifest.json, fsync; fsync the folder; rename to step-N; fsync the parent; prune

A crash leaves a `.partial` that no reader looks at. An error on one rank is raised on all of them,
and only after the barriers, so nobody is left waiting; the run can go on to the next interval.
"""

import functools
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue, ValidationError
from torch import Tensor

from weft.checkpoint.digest import fingerprint_experts
from weft.checkpoint.durable import sync_folder, write_durably
from weft.checkpoint.format import (
    DTYPES,
    FORMAT,
    MANIFEST,
    Entry,
    Kind,
    Manifest,
    RankReport,
    ShardFile,
    encode_manifest,
    find_faults,
    key_of,
    step_name,
)
from weft.checkpoint.prune import check_keep, prune, set_aside
from weft.checkpoint.shard import write_shard
from weft.errors import CheckpointError
from weft.version import __version__


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """Elements [start, stop) of a flattened tensor of this shape, on the CPU.

    Shapes:
        tensor: stop - start
    """

    kind: Kind
    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    tensor: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A run besides its tensors: finished steps, the resolved config, its place in the data."""

    step: int
    config: Mapping[str, JsonValue]
    data: Mapping[str, JsonValue]


@dataclass(frozen=True, kw_only=True, slots=True)
class Writer:
    """One of the ranks that write together, and the barrier all of them pass."""

    rank: int
    num_ranks: int
    barrier: Callable[[], None]


def alone() -> Writer:
    """The writer of a run with one rank."""
    return Writer(rank=0, num_ranks=1, barrier=lambda: None)


def no_fail(_point: str) -> None:
    """The fail-point that does nothing."""


def save(
    run_dir: Path,
    pieces: Sequence[Piece],
    *,
    progress: Progress,
    writer: Writer,
    keep: int = 2,
    keep_every: int | None = None,
    fail_point: Callable[[str], None] = no_fail,
    report: Callable[[str], None] = warnings.warn,
) -> Path:
    """Writes a checkpoint together with the other ranks, prunes older ones, returns the folder.

    Pieces of all ranks cover each tensor exactly once; a piece without elements is left out. A
    checkpoint of the same step that is already there is set aside, not overwritten.

    Communicates:
        Three barriers, four when a rank failed; the rest goes through the run directory, which all
        ranks see.

    Raises:
        CheckpointError, on all ranks when on one, and then nothing was added.
    """
    check_keep(keep)
    folder = run_dir / step_name(progress.step)
    partial = folder.with_suffix(".partial")
    failure = _attempt(partial, 0, lambda: _prepare(partial)) if writer.rank == 0 else None
    writer.barrier()
    num_bytes = sum(piece.tensor.nbytes for piece in pieces)
    failure = failure or _attempt(partial, num_bytes, lambda: _write_rank(partial, pieces, writer))
    if failure is None:
        fail_point("after_shard_write")
    writer.barrier()
    if writer.rank == 0:
        publish = lambda: _publish(partial, folder, progress, writer.num_ranks, fail_point)  # noqa: E731
        failure = failure or _attempt(partial, 0, publish)
        if failure is None:
            tidy = functools.partial(prune, keep=keep, keep_every=keep_every, fail_point=fail_point)
            _settle(folder, tidy, report)
    writer.barrier()
    if not (failure or partial.exists()):
        return folder
    writer.barrier()  # all have seen the remains that tell of a failure
    if writer.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk its bytes are missed
    raise failure or CheckpointError(
        f"{folder} was not written: another rank failed; expected all {writer.num_ranks} to "
        "finish; see the error of that rank"
    )


def save_shards(
    run_dir: Path, parts: Sequence[Callable[[], Sequence[Piece]]], *, progress: Progress
) -> Path:
    """Writes a checkpoint alone, one shard file after the other; each part is made in its turn.

    Raises:
        CheckpointError, and then nothing was added.
    """
    folder = run_dir / step_name(progress.step)
    partial = folder.with_suffix(".partial")

    def write() -> None:
        _prepare(partial)
        for rank, part in enumerate(parts):
            writer = Writer(rank=rank, num_ranks=len(parts), barrier=lambda: None)
            _write_rank(partial, part(), writer)
        _publish(partial, folder, progress, len(parts), no_fail)
        sync_folder(run_dir)

    failure = _attempt(partial, 0, write)
    if failure:
        shutil.rmtree(partial, ignore_errors=True)
        raise failure
    return folder


def _attempt(partial: Path, num_bytes: int, write: Callable[[], None]) -> CheckpointError | None:
    """Writes, and returns what went wrong: the barriers have to be passed all the same."""
    try:
        write()
    except CheckpointError as error:
        return error
    except ValidationError as error:
        return CheckpointError(f"cannot describe {partial}: {error}; expected JSON values only")
    except OSError as error:
        around = next(p for p in (partial, *partial.parents) if p.exists())
        return CheckpointError(
            f"cannot write {partial}: {error}; needed {num_bytes} bytes, found "
            f"{shutil.disk_usage(around).free} free; free some space or set another train.run_dir"
        )
    return None


def _prepare(partial: Path) -> None:
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)


def _write_rank(partial: Path, pieces: Sequence[Piece], writer: Writer) -> None:
    path = partial / f"rank-{writer.rank:05d}.safetensors"
    held = [piece for piece in pieces if piece.stop > piece.start]
    tensors = {_key(piece): _checked(piece) for piece in held}
    if len(tensors) != len(held):
        raise CheckpointError(f"rank {writer.rank} was given a piece twice; expected each once")
    files, entries = (), ()
    if held:
        made = write_shard(path, tensors)
        files = (ShardFile(file=path.name, num_bytes=made.num_bytes, crc32=made.crc32),)
        entries = tuple(_entry(piece, path.name, made.pieces[_key(piece)]) for piece in held)
    rank_report = RankReport(files=files, entries=entries)
    write_durably(_report_path(partial, writer.rank), rank_report.model_dump_json().encode())


def _key(piece: Piece) -> str:
    return key_of(piece.kind, piece.name, piece.start, piece.stop)


def _dtype(piece: Piece) -> str:
    return str(piece.tensor.dtype).removeprefix("torch.")


def _checked(piece: Piece) -> Tensor:
    dtype = _dtype(piece)
    if dtype not in DTYPES or piece.tensor.shape != (piece.stop - piece.start,):
        raise CheckpointError(
            f"piece {piece.kind} {piece.name} [{piece.start}, {piece.stop}) has dtype {dtype} and "
            f"shape {tuple(piece.tensor.shape)}; expected a flat one of {', '.join(DTYPES)}"
        )
    return piece.tensor


def _entry(piece: Piece, file: str, crc32: int) -> Entry:
    return Entry.model_validate(
        {
            "file": file,
            "key": _key(piece),
            "kind": piece.kind,
            "name": piece.name,
            "shape": tuple(piece.shape),
            "start": piece.start,
            "stop": piece.stop,
            "dtype": _dtype(piece),
            "crc32": crc32,
        }
    )


def _publish(
    partial: Path,
    folder: Path,
    progress: Progress,
    num_ranks: int,
    fail_point: Callable[[str], None],
) -> None:
    """Rank 0: the manifest from what the ranks wrote, then the name that makes it count."""
    reports = [_read_report(partial, rank) for rank in range(num_ranks)]
    entries = tuple(entry for rank_report in reports for entry in rank_report.entries)
    manifest = Manifest(
        format=FORMAT,
        weft=__version__,
        step=progress.step,
        config=dict(progress.config),
        data=dict(progress.data),
        files=tuple(file for rank_report in reports for file in rank_report.files),
        entries=entries,
        fingerprints=fingerprint_experts(entries),
    )
    fault = next(find_faults(manifest), None)
    if fault:
        raise CheckpointError(
            f"the pieces given for {folder} make no checkpoint: {fault}; expected each element of "
            "each tensor from exactly one rank"
        )
    for rank in range(num_ranks):
        _report_path(partial, rank).unlink()
    fail_point("before_manifest")
    write_durably(partial / MANIFEST, encode_manifest(manifest))
    sync_folder(partial)
    fail_point("after_manifest")
    if folder.exists():
        set_aside(folder)
    fail_point("before_rename")
    partial.rename(folder)


def _settle(folder: Path, tidy: Callable[..., None], report: Callable[[str], None]) -> None:
    """Rank 0, once the checkpoint counts: an error from here on is reported and raises nothing."""
    try:
        sync_folder(folder.parent)
        tidy(folder.parent, written=folder)
    except (OSError, CheckpointError) as error:
        report(f"{folder} is whole, but tidying up around it failed: {error}")


def _report_path(partial: Path, rank: int) -> Path:
    return partial / f"rank-{rank:05d}.json"


def _read_report(partial: Path, rank: int) -> RankReport:
    try:
        return RankReport.model_validate_json(_report_path(partial, rank).read_bytes())
    except (FileNotFoundError, ValidationError):
        raise CheckpointError(
            f"rank {rank} did not finish its part of {partial}; expected its list of pieces; see "
            "the error of that rank"
        ) from None

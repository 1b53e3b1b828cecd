"""Which checkpoints may go: all but the newest few that are whole, and what crashes left half done.

A folder goes in two moves, renamed first and deleted then: a crash between them leaves nothing that
looks whole. What shows damage without its bytes being read is not counted, and never deleted:
somebody may want to look at it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from weft.checkpoint.format import Manifest, newest_first, step_of
from weft.checkpoint.verify import verify, verify_structure
from weft.errors import CheckpointError

FEWEST = 2  # with one, a checkpoint that rots leaves nothing to fall back to


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The folders of a run whose names say that they hold a checkpoint, newest first."""
    if not run_dir.is_dir():
        return []
    named = (path for path in run_dir.iterdir() if step_of(path.name) is not None)
    return sorted(named, key=lambda path: newest_first(path.name))


def prune(
    run_dir: Path,
    *,
    keep: int,
    written: Path,
    fail_point: Callable[[str], None],
    keep_every: int | None = None,
) -> None:
    """Deletes all whole checkpoints but the newest `keep` up to `written`, and stale remains.

    Those of steps that `keep_every` divides stay for good.

    Newer ones than `written` are not counted: a run that fell back to an older checkpoint leaves
    them behind, damaged. A replaced one goes too, unless its bytes are no longer what they were.

    Raises:
        CheckpointError, before anything is deleted, when `keep` < 2 or `written` is not whole.
    """
    check_keep(keep)
    verify_structure(written)
    newest = newest_first(written.name)
    older = [path for path in list_checkpoints(run_dir) if newest_first(path.name) >= newest]
    in_use = [path for path in older if not path.suffix and _passes(verify_structure, path)]
    replaced = [path for path in older if path.suffix and _passes(verify, path)]
    spare = [path for path in in_use[keep:] if not _stays(path, keep_every)]
    for path in [*spare, *replaced]:
        _delete(path, fail_point)
    for path in sorted(run_dir.glob("step-*.*")):
        step = step_of(path.stem)
        stale = path.suffix == ".pruned" or (
            path.suffix == ".partial" and (step or 0) <= -newest[0]
        )
        if stale and step is not None:
            shutil.rmtree(path)


def sweep(run_dir: Path) -> None:
    """Deletes what crashes left half written or half deleted, while nobody writes there."""
    for path in sorted(run_dir.glob("step-*.*")):
        if path.suffix in (".pruned", ".partial") and step_of(path.stem) is not None:
            shutil.rmtree(path, ignore_errors=True)  # it is no checkpoint; the next save tries too


def check_keep(keep: int) -> None:
    """Refuses to keep fewer than two checkpoints.

    Raises:
        CheckpointError
    """
    if keep < FEWEST:
        raise CheckpointError(
            f"train.keep = {keep} would leave nothing to fall back to; expected at least {FEWEST}; "
            f"try {FEWEST}"
        )


def set_aside(folder: Path) -> None:
    """Renames a checkpoint that a new one of the same step is about to replace."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.replaced-{number}")).exists():
        number += 1
    folder.rename(aside)


def _stays(folder: Path, keep_every: int | None) -> bool:
    return keep_every is not None and (step_of(folder.name) or 0) % keep_every == 0


def _passes(check: Callable[[Path], Manifest], folder: Path) -> bool:
    try:
        check(folder)
    except CheckpointError:
        return False
    return True


def _delete(folder: Path, fail_point: Callable[[str], None]) -> None:
    gone = folder.with_name(f"{folder.name}.pruned")
    folder.rename(gone)
    fail_point("in_prune")
    shutil.rmtree(gone)

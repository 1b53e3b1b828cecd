"""R5: a disk that is full, read-only or broken. The message says what is missing, nothing old is
harmed, and no debris is left that could be taken for a checkpoint.
"""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from weft.checkpoint import durable, shard
from weft.checkpoint.load import find_latest
from weft.errors import CheckpointError
from weft.testing.chaos.damage import is_of, write
from weft.testing.chaos.result import Result, Size

KINDS = (errno.ENOSPC, errno.EROFS, errno.EIO)


@contextmanager
def broken(kind: int, after: int) -> Iterator[None]:
    """A disk on which everything fails from the `after`-th write or sync on."""
    done = count()
    honest = shard._write, durable.os.fsync

    def failing(act: Callable) -> Callable:
        def call(*given: object) -> object:
            if next(done) >= after:
                raise OSError(kind, os.strerror(kind))
            return act(*given)

        return call

    shard._write, durable.os.fsync = failing(honest[0]), failing(honest[1])
    try:
        yield
    finally:
        shard._write, durable.os.fsync = honest


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Files of no more than so many bytes, by the kernel."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check(size: Size) -> Result:
    """So many disks that fail at some point of a save."""
    trials, faults, failed = size.trials(6, 40), [], 0
    for number in trials:
        run_dir = size.folder / f"disk-{number}"
        write(run_dir, 2)
        last = number % 4 == 3
        trouble = small_files(700) if last else broken(KINDS[number % 3], number // 2)
        text = _message(trouble, run_dir)
        failed += bool(text)
        kept = find_latest(run_dir, report=lambda _: None)
        names = sorted(path.name for path in run_dir.iterdir())
        wanted = all(word in text for word in (str(run_dir), "needed", "bytes", "free"))
        if text and (not wanted or names != ["step-00000002"]):
            faults.append(f"disk {number}: left {names}, said {text!r}")
        if kept is None or not is_of(kept, 2 if text else 3):
            faults.append(f"disk {number}: {kept} is not whole")
        again = write(run_dir, 3) if text else kept
        if again is None or not is_of(again, 3):
            faults.append(f"disk {number}: the next save failed")
    return Result(
        promise="R5 a disk that fails harms nothing old",
        counts={"disks": len(trials), "saves that failed": failed},
        faults=faults,
        control=_control(size),
    )


def _message(trouble: object, run_dir: Path) -> str:
    try:
        with trouble:  # type: ignore[attr-defined]
            write(run_dir, 3)
    except CheckpointError as error:
        return str(error)
    return ""


def _control(size: Size) -> str:
    """A save over the old one, that fails, is what the look above finds."""
    run_dir = size.folder / "disk-control"
    old = write(run_dir, 2)
    (old / "rank-00000.safetensors").write_bytes(b"half of a n")
    try:
        is_of(old, 2)
    except CheckpointError:
        return "a checkpoint written over in place was found"
    return ""

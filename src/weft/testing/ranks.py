"""Real ranks for a test: forked processes that talk over gloo, and one list of results.

The parent has imported torch already, so a rank starts in milliseconds. A child sends one frame
through its pipe, its result or its traceback, and leaves without running the parent's exit
handlers:

    frame = one letter (R result, F failure) + 8 bytes of monotonic nanoseconds + payload

Results are what `torch.load(weights_only=True)` accepts: tensors, numbers, strings, lists, tuples,
dicts, None.
"""

import faulthandler
import io
import os
import selectors
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from weft.errors import DeadlockError, VerificationError

Result = TypeVar("Result")

_RESULT, _FAILURE = b"R", b"F"
_CLOCK_BYTES = 8
_PIPE_BYTES = 1 << 16  # the capacity of a Linux pipe: no read returns more
_GRACE_SECONDS = 0.2  # for ranks that fail because another did, and for stack dumps
_ALARM_SECONDS = 10  # a child outlives a dead parent by at most its timeout and this


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What every rank is to do, and where its files are."""

    n: int
    function: Callable[..., object]
    args: tuple[object, ...]
    folder: Path
    timeout: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Child:
    """A forked rank: its process and the reading end of its pipe."""

    rank: int
    pid: int
    pipe: int


def run_ranks(
    n: int, function: Callable[..., Result], *args: object, timeout: float = 60.0
) -> list[Result]:
    """Runs `function(rank, *args)` on n forked ranks joined over gloo; the results in rank order.

    Each child computes with one thread. `timeout` is in seconds, for the whole call and for each
    collective.

    Raises:
        VerificationError: a rank raised or died; the first one is named, with its traceback.
        DeadlockError: some rank did not finish in time; each of those is named, with its stack.

    Example:
        >>> run_ranks(2, lambda rank, base: base + rank, 10)
        [10, 11]
    """
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory(prefix="weft-ranks-") as folder:
        job = _Job(n=n, function=function, args=args, folder=Path(folder), timeout=timeout)
        children = [_fork(job, rank) for rank in range(n)]
        try:
            frames = _collect(children, deadline)
            _raise_first_failure(frames, n)
            _raise_if_late(children, frames, job)
        finally:
            _end(children)
    return [
        torch.load(io.BytesIO(frames[r][1 + _CLOCK_BYTES :]), weights_only=True) for r in range(n)
    ]


def _fork(job: _Job, rank: int) -> _Child:
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # python 3.12 warns of threads in the parent; a child uses none of them
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        os.close(writing)
        return _Child(rank=rank, pid=pid, pipe=reading)
    code = 1
    try:
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(_live(job, rank))
        sys.stdout.flush()
        sys.stderr.flush()
        code = 0
    finally:
        os._exit(code)  # not the parent's exit handlers, nor pytest's


def _live(job: _Job, rank: int) -> bytes:
    """The whole life of a child, as the frame it sends."""
    try:
        faulthandler.register(signal.SIGUSR1, file=_stack_file(job.folder, rank).open("w"))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, job.timeout + _ALARM_SECONDS)
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{job.folder / 'store'}",
            rank=rank,
            world_size=job.n,
            timeout=timedelta(seconds=job.timeout),
        )
        payload = io.BytesIO()
        torch.save(job.function(rank, *job.args), payload)
        dist.destroy_process_group()
        return _frame(_RESULT, time.monotonic_ns(), payload.getvalue())
    except BaseException:  # noqa: BLE001 - whatever ended this rank belongs in the parent's report
        failed = time.monotonic_ns()  # before the words are put together, which takes long
        return _frame(_FAILURE, failed, traceback.format_exc().encode())


def _frame(kind: bytes, nanoseconds: int, payload: bytes) -> bytes:
    return kind + nanoseconds.to_bytes(_CLOCK_BYTES, "big") + payload


def _collect(children: list[_Child], deadline: float) -> dict[int, bytes]:
    """What each rank sent, whole frames only; stops early, after a grace, once a rank has
    failed.
    """
    received = {child.rank: bytearray() for child in children}
    frames: dict[int, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.pipe, selectors.EVENT_READ, child)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, _PIPE_BYTES)
                received[key.data.rank] += chunk
                if chunk:
                    continue
                selector.unregister(key.fd)
                frames[key.data.rank] = bytes(received[key.data.rank])
                if not frames[key.data.rank].startswith(_RESULT):
                    deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    return frames


def _raise_first_failure(frames: dict[int, bytes], n: int) -> None:
    dead = [rank for rank, frame in frames.items() if not frame]
    failed = [rank for rank, frame in frames.items() if frame.startswith(_FAILURE)]
    if dead:
        raise VerificationError(
            f"rank {dead[0]} of {n} died without a word; "
            "look for a signal, a lack of memory, or os._exit"
        )
    if failed:
        first = min(failed, key=lambda rank: frames[rank][1 : 1 + _CLOCK_BYTES])
        raise VerificationError(
            f"rank {first} of {n} failed first:\n{frames[first][1 + _CLOCK_BYTES :].decode()}"
        )


def _raise_if_late(children: list[_Child], frames: dict[int, bytes], job: _Job) -> None:
    late = [child for child in children if child.rank not in frames]
    if not late:
        return
    for child in late:
        os.kill(child.pid, signal.SIGUSR1)
    time.sleep(_GRACE_SECONDS)
    stacks = "\n".join(
        f"rank {child.rank}:\n{_stack_file(job.folder, child.rank).read_text()}" for child in late
    )
    raise DeadlockError(
        f"ranks {[child.rank for child in late]} of {job.n} had not finished "
        f"after {job.timeout} s; compare where they stand, or raise the timeout\n{stacks}"
    )


def _end(children: list[_Child]) -> None:
    """Kills and reaps every child; one that has left already is only reaped."""
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        os.close(child.pipe)


def _stack_file(folder: Path, rank: int) -> Path:
    return folder / f"stack-{rank}"

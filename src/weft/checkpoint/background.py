"""Writing while training goes on: a copy of the state on the host, and one thread that writes it.

step n      the copy begins, into buffers that are kept for the next time
step n+1    forward and backward run beside it on a CPU; the update, which changes the state, waits
step n+1..  a thread writes the copy; the step sees nothing of it
later       how it ended is there to be picked up; the next copy waits for that
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from weft.checkpoint.save import Piece

Finish = Callable[[], list[Piece]]


@final
class Snapshot:
    """The host's copy of a rank's pieces, in buffers that live as long as the run."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str, int], Tensor] = {}
        self._until_copied: Callable[[], object] = _at_once
        self.held_seconds = 0.0  # by the last copy

    def begin(self, pieces: Sequence[Piece]) -> Finish:
        """Begins to copy the pieces as they are now.

        The thread that is to write calls what is returned: it ends the copying and gives the same
        pieces with these values. Until then nothing may change them: see `hold`.
        """
        self.held_seconds = 0.0
        copies = [replace(piece, tensor=self._buffer(piece)) for piece in pieces]
        on_device = any(piece.tensor.is_cuda for piece in pieces)  # a state is on one
        begin = _begin_on_device if on_device else _begin_on_host
        self._until_copied, finish = begin(pieces, copies)
        return finish

    def hold(self) -> None:
        """Comes back once the pieces may change."""
        begun = time.perf_counter()
        self._until_copied()
        self.held_seconds += time.perf_counter() - begun
        self._until_copied = _at_once

    def _buffer(self, piece: Piece) -> Tensor:
        key, source = (piece.kind, piece.name, piece.start), piece.tensor
        if key not in self._buffers:
            empty = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
            self._buffers[key] = empty
        return self._buffers[key]


def _at_once() -> None:
    """Nothing is being copied."""


def _begin_on_host(
    pieces: Sequence[Piece], copies: list[Piece]
) -> tuple[Callable[[], object], Finish]:
    """The writing thread copies."""
    copied = threading.Event()

    def finish() -> list[Piece]:
        try:
            for piece, copy in zip(pieces, copies, strict=True):
                copy.tensor.copy_(piece.tensor)
        finally:
            copied.set()
        return copies

    return copied.wait, finish


def _begin_on_device(
    pieces: Sequence[Piece], copies: list[Piece]
) -> tuple[Callable[[], object], Finish]:
    """The device copies before anything else: to memory that is pinned, a fraction of a step."""
    for piece, copy in zip(pieces, copies, strict=True):
        copy.tensor.copy_(piece.tensor, non_blocking=True)
    torch.cuda.current_stream(pieces[0].tensor.device).synchronize()
    return _at_once, lambda: copies


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a write ended: the folder it made, or what went wrong."""

    step: int
    seconds: float
    folder: Path | None
    error: Exception | None


@final
class Background:
    """At most one write under way."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._ended: Ended | None = None

    def start(self, step: int, write: Callable[[], Path]) -> None:
        """Starts a write; the one before has been waited for."""
        assert self._thread is None, "a write is under way"
        self._thread = threading.Thread(
            target=self._run, args=(step, write), name="checkpoint", daemon=True
        )
        self._thread.start()

    def ended(self) -> Ended | None:
        """How the last write ended, once; None while it is under way or there is none."""
        if self._thread is None or self._thread.is_alive():
            return None
        return self.wait()

    def wait(self) -> Ended | None:
        """How the last write ended, when it has; None if there is none."""
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        return self._ended

    def _run(self, step: int, write: Callable[[], Path]) -> None:
        begun, folder, failure = time.perf_counter(), None, None
        try:
            folder = write()
        except Exception as error:  # noqa: BLE001 - it is raised where the step ends
            failure = error
        seconds = time.perf_counter() - begun
        self._ended = Ended(step=step, seconds=seconds, folder=folder, error=failure)

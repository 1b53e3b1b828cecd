"""Writing while training goes on: a copy of the state on the host, and one thread that writes it.

step n      the state is copied into buffers that are kept for the next time
step n+1..  a thread writes the copy; the step sees nothing of it
later       how it ended is there to be picked up; the next copy waits for that
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from weft.checkpoint.save import Piece


@final
class Snapshot:
    """The host's copy of a rank's pieces, in buffers that live as long as the run."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str, int], Tensor] = {}

    def take(self, pieces: Iterable[Piece]) -> list[Piece]:
        """The same pieces with the values they have now, whatever is written to them later."""
        taken = [replace(piece, tensor=self._copy(piece)) for piece in pieces]
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return taken

    def _copy(self, piece: Piece) -> Tensor:
        key, source = (piece.kind, piece.name, piece.start), piece.tensor.detach()
        if key not in self._buffers:
            cuda = source.device.type == "cuda"
            self._buffers[key] = torch.empty(source.shape, dtype=source.dtype, pin_memory=cuda)
        return self._buffers[key].copy_(source, non_blocking=True)


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

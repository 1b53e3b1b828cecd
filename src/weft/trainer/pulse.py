"""What a rank shows of itself while it runs, for its supervisor to read from outside.

One small file a rank, mapped into its memory, so that showing costs a microsecond and needs nobody
to listen. Two clocks are in it: a thread of the rank turns the first as long as the process runs at
all, its main thread the second wherever it gets on.

    alive   nanoseconds   the last turn of the thread     stands still: stopped, or stuck in C
    moved   nanoseconds   the last thing done             stands still: waits, computes or is stuck
    step, posted          the step, the collectives posted in it and before
    waits                 1 while it waits in a collective
    phase, call           names: where it is, the collective it posted or waits for

All but the first clock is there twice, and a byte says which of the two is whole: a process may be
stopped while it writes, and then shows what it had shown before.
"""

import mmap
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from weft.comm.call import Call
from weft.comm.transports.watched import Observer

Phase = Literal["start", "first step", "step", "evaluate", "save", "inspect", "end"]

ALIVE_SECONDS = 0.25  # how often the thread turns its clock
_ALIVE, _REST = struct.Struct("<q"), struct.Struct("<qqqB12s160s")
_WHOLE = _ALIVE.size  # where the byte is
_RESTS = (_WHOLE + 1, _WHOLE + 1 + _REST.size)
_BYTES = _RESTS[1] + _REST.size


@dataclass(frozen=True, kw_only=True, slots=True)
class Sign:
    """What was seen of a rank."""

    alive_ns: int
    moved_ns: int
    step: int
    posted: int
    waits: bool
    phase: str
    call: str


def no_fail(_point: str) -> None:
    """The fail-point that does nothing."""


@final
class Pulse(Observer):
    """The writing end, in a rank. `fail_point` is told where it is by name, in tests to end it."""

    def __init__(
        self, path: Path | None = None, fail_point: Callable[[str], None] = no_fail
    ) -> None:
        self._fail_point = fail_point
        self._page = bytearray(_BYTES) if path is None else _mapped(path)
        self._phase, self._step, self._posted, self._call = b"start", 0, 0, b""
        self._show(waits=False)
        if path is not None:
            threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def enter(self, phase: Phase, step: int) -> None:
        """Another phase, or the same of another step, has begun."""
        self._phase, self._step = phase.encode(), step
        self._show(waits=False)

    def pass_by(self, point: str) -> None:
        """A named place where a test may end the process."""
        self._fail_point(point)

    def posting(self, call: Call, sequence: int) -> None:
        self._posted += 1
        self._name(call, sequence)
        self._show(waits=False)
        self._fail_point(f"in_{call.label}")

    def waiting(self, call: Call, sequence: int) -> None:
        self._name(call, sequence)
        self._show(waits=True)

    def arrived(self) -> None:
        self._show(waits=False)

    def _name(self, call: Call, sequence: int) -> None:
        name = f"{call.collective} '{call.label}', call {sequence} of axis {call.axis}"
        self._call = name.encode()

    def _show(self, *, waits: bool) -> None:
        now = time.monotonic_ns()
        values = (now, self._step, self._posted, waits, self._phase, self._call)
        whole = 1 - self._page[_WHOLE]
        _REST.pack_into(self._page, _RESTS[whole], *values)
        self._page[_WHOLE] = whole

    def _beat(self) -> None:
        while True:
            _ALIVE.pack_into(self._page, 0, time.monotonic_ns())
            time.sleep(ALIVE_SECONDS)


def read(path: Path) -> Sign | None:
    """What a rank shows now; None before it has shown anything."""
    try:
        page = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(page) != _BYTES:
        return None
    (alive,) = _ALIVE.unpack_from(page)
    moved, step, posted, waits, phase, call = _REST.unpack_from(page, _RESTS[page[_WHOLE]])
    if not moved:
        return None
    return Sign(
        alive_ns=alive,
        moved_ns=moved,
        step=step,
        posted=posted,
        waits=bool(waits),
        phase=phase.rstrip(b"\0").decode(),
        call=call.rstrip(b"\0").decode(errors="replace"),
    )


def _mapped(path: Path) -> mmap.mmap:
    path.write_bytes(bytes(_BYTES))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), _BYTES)

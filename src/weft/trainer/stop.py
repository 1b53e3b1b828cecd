"""Asked to end: the first SIGTERM or SIGINT lets a step finish and be saved, the second ends it.

Python runs a handler between two of its own instructions, and a rank that waits inside a collective
executes none. So a thread listens at the descriptor that the interpreter writes each signal to: the
first is remembered, and `Loop` tells the other ranks of it in the statistics of the next step; the
second ends the process at once, wherever it stands.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start it again
ENDED = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM has ended


class Stop:
    """How often this process has been asked to end."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def asked(self) -> bool:
        return self.count > 0


def end_at_once(number: int) -> None:
    """Leaves with the code that a shell gives to a process ended by this signal."""
    os._exit(128 + number)


@contextmanager
def listening(second: Callable[[int], None] = end_at_once) -> Iterator[Stop]:
    """Counts the signals that ask for the end, and calls `second` from the second one on.

    Only the main thread may listen; in another one, as in a notebook, nothing is ever heard.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    handlers = {number: signal.signal(number, _pass) for number in SIGNALS}
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_hear, args=(reading, stop, second), daemon=True).start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writing)


def _pass(_number: int, _frame: object) -> None:
    """A handler has to be there for the interpreter to write to the descriptor."""


def _hear(reading: int, stop: Stop, second: Callable[[int], None]) -> None:
    while heard := os.read(reading, 1):
        if heard[0] in SIGNALS:
            stop.count += 1
            if stop.count > 1:
                second(heard[0])
    os.close(reading)

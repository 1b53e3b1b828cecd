"""The first signal is remembered, the second acts, wherever the main thread is."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from weft.testing.kill import Forked
from weft.trainer.stop import SIGNALS, listening


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.02)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_are_counted_and_the_second_one_acts(number: int) -> None:
    acted: list[int] = []
    before = signal.getsignal(number)
    with listening(acted.append) as stop:
        assert not stop.asked
        send(number)
        assert (stop.asked, acted) == (True, [])
        send(number)
        assert acted == [number]
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_a_process_that_is_stuck_in_c(tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def be_stuck() -> int:
        with listening():
            ready.touch()
            threading.Lock().acquire() or signal.sigwait([])
            signal.sigwait([signal.SIGUSR2])  # C code that no handler interrupts
        return 0

    process = Forked(be_stuck, tmp_path / "output", tmp_path / "errors")
    while not ready.exists():
        time.sleep(0.01)
    time.sleep(0.1)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert process.wait() == 128 + signal.SIGTERM


def test_another_thread_hears_nothing() -> None:
    found = []

    def listen() -> None:
        with listening() as stop:
            found.append(stop.asked)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [False]

"""One run holds a folder, whoever is second is told who; nothing has to be tidied up."""

import os
import signal
import time
from pathlib import Path

import pytest

from weft.errors import ConfigError
from weft.testing.kill import Forked
from weft.trainer import lock


def hold_for_long(run_dir: Path) -> int:
    with lock.hold(run_dir):
        (run_dir / "held").touch()
        time.sleep(60)
    return 0


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.1)
    for _ in range(2):
        with (
            lock.hold(tmp_path),
            pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on"),
            lock.hold(tmp_path),
        ):
            pass


def test_a_folder_is_free_when_its_holder_was_killed(tmp_path: Path) -> None:
    holder = Forked(lambda: hold_for_long(tmp_path), tmp_path / "output", tmp_path / "errors")
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    os.kill(holder.pid, signal.SIGKILL)  # while the other waits for it
    with lock.hold(tmp_path):
        assert holder.wait() == -signal.SIGKILL


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1, "host": "a", "since": 1e99}', "\x00"])
def test_a_text_that_says_nothing_is_no_obstacle(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    with lock.hold(tmp_path):
        (tmp_path / lock.FILE).write_text(text)
        with pytest.raises(ConfigError, match="in use by a process"), lock.hold(tmp_path):
            pass

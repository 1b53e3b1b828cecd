"""One run a folder: a lock that the kernel takes back, however its holder ended.

It is `flock` on `run_dir/lock`, whose text says who holds it. Every process of a run keeps the file
open, so the folder is free when the last of them is gone, and no text has to be believed.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weft.errors import ConfigError

FILE = "lock"
PATIENCE_SECONDS = 3.0  # ranks outlive a supervisor that was killed by trainer.child.LOOK_SECONDS
POLL_SECONDS = 0.05


@contextmanager
def hold(run_dir: Path) -> Iterator[int]:
    """Holds the folder of a run, which exists; yields the descriptor that stands for it.

    Raises:
        ConfigError: another run holds it; it is named.
    """
    path = run_dir / FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _acquire(descriptor):
            raise ConfigError(
                f'train.run_dir = "{run_dir}": in use by {_holder(path)}; expected a folder with '
                "no run under way; end that one, or set another train.run_dir"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int) -> bool:
    """Takes the lock if it becomes free soon."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        else:
            return True


def _myself() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}


def _holder(path: Path) -> str:
    """Who holds the lock, as far as the file says."""
    try:
        known = json.loads(path.read_bytes())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(known["since"]))
        return f"process {known['pid']} on {known['host']}, since {since}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "a process that is about to write down its name"

"""What a power cut cannot undo once a call has returned: fsync of files and of folders."""

import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Writes a new file and returns when its content is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Returns when the content of a file is on the disk."""
    _sync(path, os.O_RDWR)


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on the disk."""
    _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""What is written is there, whole, and nothing is overwritten."""

from pathlib import Path

import pytest

from weft.checkpoint.durable import sync_file, sync_folder, write_durably


def test_content_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"content")
    sync_file(path)
    sync_folder(tmp_path)
    assert path.read_bytes() == b"content"
    with pytest.raises(FileExistsError):
        write_durably(path, b"other")
    assert path.read_bytes() == b"content"


def test_what_is_not_there_cannot_be_synced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_file(tmp_path / "file")

"""Files are documents; a bad one is told apart, and parts change nothing."""

from pathlib import Path

import pytest

from weft.data.document import Fields, Sieve
from weft.data.sources import text
from weft.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(7):
        (tmp_path / f"{number}.txt").write_bytes(b"x" * number)
    return tmp_path


@pytest.mark.parametrize("part_bytes", [1, 5, 1000])
def test_the_documents_do_not_depend_on_the_parts(folder: Path, part_bytes: int) -> None:
    parts = text.cut(folder, part_bytes)
    found = [d for part in parts for d in text.read(part, Fields(), Sieve("stop"))]
    assert [(d.name, len(d.content)) for d in found] == [(f"{n}.txt", n) for n in range(7)]
    assert sum(part.num_bytes for part in parts) == 21


def test_bad_files_are_skipped_and_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "3.txt").write_bytes(b"ok\xff")
    (folder / "4.txt").unlink()
    (folder / "4.txt").symlink_to(folder / "gone")
    monkeypatch.setattr(text, "LONGEST_BYTES", 5)
    sieve = Sieve("skip")
    found = [d.name for part in text.cut(folder, 99) for d in text.read(part, Fields(), sieve)]
    assert found == ["0.txt", "1.txt", "2.txt", "5.txt"]
    assert [reason.count("; ") for reason in sieve.skipped] == [1, 2, 2] or len(sieve.skipped) == 3
    assert "3.txt is not valid UTF-8 at byte 2" in sieve.skipped[0]
    assert "6 bytes; expected a document of at most 5" in sieve.skipped[2]


def test_the_library_is_read_without_tests() -> None:
    names = [name for part in text.cut_library(None, 1 << 20) for name in part.files]
    assert "argparse.py" in names
    assert not [name for name in names if "/test/" in name or not name.endswith(".py")]


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files"):
        text.cut(tmp_path, 1)

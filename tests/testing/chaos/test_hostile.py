"""Pickles are refused wherever weft reads a file, and what would take one is found."""

from pathlib import Path

import pytest

from weft.errors import DataError
from weft.testing.chaos import hostile
from weft.testing.chaos.result import Size


def test_no_file_that_is_loaded_runs_code(least: Size) -> None:
    result = hostile.check(least)
    assert result.holds, result
    assert result.counts["files"] > 15


def test_what_takes_a_pickle_or_breaks_over_it_is_found(
    least: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plant(read):
        def places(folder: Path):
            folder.mkdir()
            yield folder / "file", read

        return places

    def breaks() -> None:
        raise KeyError("a traceback")

    def refuses() -> None:
        raise DataError("no")

    for read, faults in ((lambda: None, 1), (breaks, 1), (refuses, 0)):
        monkeypatch.setattr(hostile, "PLANTS", {f"plant-{faults}-{read.__name__}": plant(read)})
        assert len(hostile.check(least).faults) == faults
        (least.folder / "canary").unlink()

"""A run is read from whatever is in its folder."""

import shutil
from pathlib import Path

import pytest
from tests.report.conftest import LAST, Folder

from weft.errors import ConfigError
from weft.report.run import Run, read_run


def test_everything_that_is_there_is_read(whole: Run) -> None:
    assert (whole.name, whole.last_step, whole.total_steps) == ("tiny", LAST, LAST)
    assert whole.skipped == [3]
    assert whole.summary["trigram_loss"] == 1.75
    assert whole.validations[-1]["validation_loss"] == 1.5
    assert [event["event"] for event in whole.events] == ["start", "checkpoint", "resume", "end"]


def test_a_series_has_the_steps_that_have_a_number(whole: Run) -> None:
    steps, losses = whole.series("loss")
    assert (steps[0], losses[0], len(losses)) == (1, 5.0, LAST)
    assert whole.series("mfu") == whole.series("unheard_of") == ([], [])


def test_the_metrics_alone_are_enough(folder: Folder, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    other.mkdir()
    shutil.copy(folder() / "metrics.jsonl", other)
    run = read_run(other)
    assert (run.last_step, run.total_steps, run.events, run.sample) == (LAST, None, [], "")


def test_a_folder_without_a_run_is_refused_and_told_of_one_nearby(
    folder: Folder, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"no metrics.jsonl here.*try one of {folder()}"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["config.toml", "summary.json"])
def test_a_file_that_weft_did_not_write_is_named(folder: Folder, name: str) -> None:
    run_dir = folder()
    (run_dir / name).write_text("{[not what it was")
    with pytest.raises(ConfigError, match=f"{name}.*delete it"):
        read_run(run_dir)

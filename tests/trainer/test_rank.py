"""One rank's life leaves a folder that says all there is to say."""

import json
from pathlib import Path

import pytest
from tests.system.conftest import Recipe
from tests.trainer.conftest import ALONE

from weft.checkpoint.load import find_latest
from weft.config.load import load
from weft.config.run import RunConfig
from weft.telemetry import events
from weft.telemetry.metrics import FILE, read
from weft.trainer import rank
from weft.trainer.rank import run_rank


def test_a_run_leaves_its_folder(few_steps: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run_rank(few_steps, ALONE, None)
    assert summary is not None
    folder = Path(few_steps.train.run_dir)
    written = json.loads((folder / "summary.json").read_text())
    assert written["last"] == summary.last == [r for r in read(folder / FILE) if "loss" in r][-1]
    assert written["validation_loss"] == summary.validation_loss
    assert load(folder / "config.toml") == few_steps
    told = [(event["event"], event["step"]) for event in events.read(folder)]
    assert told == [("start", 0), ("checkpoint", 2), ("checkpoint", 4), ("end", 4)]
    shown = capsys.readouterr().out
    assert "tiny: " in shown
    assert "validation loss" in shown
    assert f"everything is in {folder}" in shown


def test_a_run_that_resumes_sums_up_what_was_done_before(few_steps: RunConfig) -> None:
    first = run_rank(few_steps, ALONE, None)
    folder = Path(few_steps.train.run_dir)
    again = run_rank(few_steps, ALONE, find_latest(folder))
    assert first is not None
    assert again is not None
    assert (again.last, again.validation_loss) == (first.last, first.validation_loss)


def test_a_run_may_sample_and_may_save_nothing(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    config = recipe("run", "train.steps=2", "train.checkpoint_every=0", "train.sample_bytes=9")
    run_rank(config, ALONE, None)
    assert "a sample" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "sample.txt").exists()


def test_an_error_closes_the_files_and_leaves_the_wire_to_the_operating_system(
    few_steps: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, *_: object) -> None:
            pass

        def remember(self) -> None:
            pass

        def run(self, **_: object) -> None:
            raise ValueError("a bug")

    def refuse(session: object) -> None:
        raise AssertionError("closed before the error was shown")

    monkeypatch.setattr(rank, "Loop", Broken)
    monkeypatch.setattr(rank, "close_session", refuse)
    with pytest.raises(ValueError, match="a bug"):
        run_rank(few_steps, ALONE, None)
    last = events.read(Path(few_steps.train.run_dir))[-1]
    assert (last["event"], last["error"]) == ("failure", "ValueError: a bug")

"""Every figure is drawn where its data are, and none where they are not."""

from pathlib import Path

import pytest
from tests.report.conftest import Folder

from weft.report.picture import PICTURES, pictures
from weft.report.run import Run, read_run


def names(run: Run) -> set[str]:
    return {picture.name for picture, _ in pictures(run)}


def test_a_run_with_everything_has_every_figure(whole: Run) -> None:
    assert names(whole) == {picture.name for picture in PICTURES}


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"exposed_comm_ms": None}, {"exposed"}),
        ({"exposed_comm_ms": 0.0}, {"exposed"}),  # a rank alone waits for nobody
        ({"loss": None, "grad_norm": None}, {"loss", "loss-log", "grad-norm", "dead"}),
    ],
)
def test_what_was_not_measured_is_not_drawn(
    folder: Folder, changes: dict[str, object], missing: set[str]
) -> None:
    run = read_run(folder(**changes))
    assert {p.name for p in PICTURES} - names(run) == missing


@pytest.mark.parametrize("last", [0, 1])
def test_a_run_that_has_hardly_begun_has_a_report(folder: Folder, last: int) -> None:
    run = read_run(folder(last=last))
    assert ("loss" in names(run)) == bool(last)
    for _, figure in pictures(run):
        figure.draw_without_rendering()  # a figure without room would warn


def test_the_baseline_and_the_validation_are_named(whole: Run) -> None:
    loss = next(made for picture, made in pictures(whole) if picture.name == "loss")
    texts = {text.get_text() for text in loss.axes[0].texts}
    assert texts == {"training", "validation 1.500", "trigram 1.750"}


def test_a_run_of_before_there_were_loads_is_drawn_without(folder: Folder, tmp_path: Path) -> None:
    path = folder() / "metrics.jsonl"
    path.write_text(path.read_text().replace('"expert_load', '"formerly'))
    path.write_text(path.read_text().replace('"formerly_', '"expert_load_'))
    run = read_run(path.parent)
    assert {"expert-load", "balance"}.isdisjoint(names(run))
    assert "dead" in names(run)

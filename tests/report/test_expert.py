"""Loads are averaged over columns, the least balanced layers are shown, the dead are marked."""

from dataclasses import replace

import numpy as np
import pytest

from weft.report import expert
from weft.report.figure import BINS
from weft.report.run import Run


def many(run: Run, steps: int, layers: int) -> Run:
    """The run with more steps and layers; layer i's busiest expert has 1 + i / 10."""
    shares = [[1 + i / 10, 1 - i / 10, 1.0, 1.0] for i in range(layers)]
    records = [{**run.steps[0], "step": s, "expert_load": shares} for s in range(1, steps + 1)]
    return replace(run, steps=records, header={**run.header, "routed_layers": list(range(layers))})


def test_loads_keep_their_mean_over_columns(whole: Run) -> None:
    steps, shares = expert.loads(many(whole, 1000, 2))
    assert shares.shape == (BINS, 2, 4)
    assert np.all(np.diff(steps) > 0)
    assert shares[:, 1, 0] == pytest.approx(1.1)


def test_layers_have_their_own_panels_and_names(whole: Run) -> None:
    made = expert.draw_loads(whole)
    assert [axes.get_ylabel() for axes in made.axes[:2]] == ["layer 1", "layer 2"]


def test_of_many_layers_the_least_balanced_are_shown(whole: Run) -> None:
    made = expert.draw_loads(many(whole, 3, 10))
    panels = [axes.get_ylabel() for axes in made.axes[: expert.PANELS]]
    assert panels == [f"layer {i}" for i in range(2, 10)]


def test_an_expert_without_a_token_is_off_the_scale(whole: Run) -> None:
    made = expert.draw_loads(whole)
    heat = made.axes[1].images[0].get_array()
    assert heat is not None
    mask = np.ma.getmaskarray(heat)
    assert mask[3, :5].all()
    assert mask.sum() == 5


def test_dead_experts_are_of_how_many(whole: Run) -> None:
    assert expert.draw_dead(whole).axes[0].get_title(loc="left") == "of 8"

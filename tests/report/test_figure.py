"""Marks are where the data are, names do not cover each other, colours are the page's."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from weft.report import figure
from weft.report.figure import BINS, BLUE, NAMES, ORANGE


@pytest.mark.parametrize("log_steps", [False, True])
@pytest.mark.parametrize("count", [1, 2, 100, 5000])
def test_columns_cover_every_value_once(count: int, log_steps: bool) -> None:
    values = np.random.default_rng(0).normal(size=count)
    steps, low, middle, high = figure.binned(range(count), values.tolist(), log_steps=log_steps)
    assert 1 <= len(steps) <= BINS
    assert (low.min(), high.max()) == (values.min(), values.max())
    assert np.all((low <= middle + 1e-12) & (middle <= high + 1e-12))
    assert np.all(np.diff(steps) > 0)


def test_the_first_steps_have_columns_of_their_own_on_a_log_scale() -> None:
    steps, *_ = figure.binned(range(1, 5001), [1.0] * 5000, log_steps=True)
    assert list(steps[:3]) == [1, 2, 3]


def test_a_running_mean_keeps_a_straight_line_and_the_start() -> None:
    line = np.linspace(3.0, 7.0, 200)
    assert figure.running_mean(line)[:-5] == pytest.approx(line[:-5])
    noise = np.random.default_rng(0).normal(size=200)
    smooth = figure.running_mean(noise)
    assert smooth[0] == pytest.approx(noise[0])
    assert smooth[-1] == pytest.approx(noise[-6:].mean())
    assert smooth[5:].std() < 0.5 * noise.std()


def drawn() -> Figure:
    with figure.styled():
        made = figure.new_figure()
        axes = figure.new_axes(made, unit="nats")
        last = figure.curve(axes, ([1, 2, 3], [3.0, 2.0, 1.0]), BLUE)
        figure.name_ends(axes, [(last, "one", BLUE), (last, "two", ORANGE), (3.0, "three", BLUE)])
        return made


def test_names_of_series_that_end_together_do_not_cover_each_other() -> None:
    made = drawn()
    made.draw_without_rendering()
    boxes = sorted(t.get_window_extent().extents[[1, 3]].tolist() for t in made.axes[0].texts)
    assert all(below[1] <= above[0] for below, above in itertools.pairwise(boxes))


def test_a_svg_takes_its_colours_from_the_page_and_its_size_from_the_card() -> None:
    text = figure.to_svg(drawn(), "loss")
    head = text[: text.index(">")]
    assert text.startswith("<svg")
    assert "viewBox" in head
    assert "width=" not in head
    assert "var(--blue)" in text
    assert not any(color in text for color in NAMES)
    assert ">one</text>" in text
    assert figure.to_svg(drawn(), "loss") == text  # the same figure, the same bytes


def test_a_png_stands_alone(tmp_path: Path) -> None:
    figure.to_png(drawn(), tmp_path / "loss.png", "Loss")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")

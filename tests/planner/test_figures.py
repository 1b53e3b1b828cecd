from dataclasses import replace
from functools import cache

import pytest

from weft.planner.constants import constants
from weft.planner.cost import Rates
from weft.planner.figures import FIGURES, PUBLISHED, Scope, rows
from weft.planner.machine import machine
from weft.planner.row import Row, beside_published, fit, published
from weft.planner.simulate import Studio
from weft.planner.systems import TABLE_2

STUDIO = Studio()
# What the fit promises over every published row.
MEDIAN, LARGEST = 0.05, 0.10


@cache
def predicted(**changes: float) -> tuple[Row, ...]:
    found = replace(constants(), **changes)
    made = rows(lambda name: Rates(machine=machine(name), constants=found), STUDIO, PUBLISHED)
    return tuple(beside_published(made))


def test_published_rows_are_met():
    whole = fit(predicted())
    assert whole.rows >= 60
    assert whole.median < MEDIAN
    assert whole.largest < LARGEST


@pytest.mark.parametrize(
    ("name", "factor"), [("product", 0.8), ("ring", 0.7), ("rows", 2.0), ("exchange", 0.7)]
)
def test_a_scaled_constant_breaks_the_calibration(name: str, factor: float):
    broken = fit(predicted(**{name: getattr(constants(), name) * factor}))
    assert broken.median > MEDIAN or broken.largest > 1.2 * LARGEST


def test_every_figure_has_rows_and_each_row_its_own_key():
    keys = [row.key for row in predicted()]
    assert len(set(keys)) == len(keys)
    assert {key.figure for key in keys} == set(FIGURES)


def test_blind_rows_are_asked_for():
    scope = Scope()
    assert scope.strong == (240, 480, 720, 960, 1440)
    assert scope.machines == ("H800", "A100", "H20")
    assert scope.models == TABLE_2


def test_dispatch_by_all_gather_wins_where_the_paper_says():
    times = {r.key.config: r.predicted for r in predicted() if r.key.figure == "fig7"}
    assert times["all_to_all k=5"] < times["all_gather"] < times["all_to_all k=7"]


def test_replicated_attention_costs_a_few_percent_of_the_synchronisation():
    """The paper: 0.3 to 3.1 % over its models (1.4)."""
    rates = Rates(machine=machine("H800"), constants=constants())
    made = FIGURES["fig15"](lambda _: rates, STUDIO, Scope())
    more = [row.predicted for row in made if row.key.metric == "increase_pct"]
    assert len(more) == len(TABLE_2)
    assert 0.3 <= min(more) <= max(more) <= 3.1


def test_every_published_row_has_a_prediction():
    told = {row.key for row in predicted() if row.published}
    assert told == set(published())

from dataclasses import fields, replace

import pytest

from weft.planner.constants import Constants, constants
from weft.planner.fit import BOUNDS, counted, fit_constants, left_out, without, without_row
from weft.planner.row import Key, Row

KEY = Key("table3", "megascale", "internal-352b", "H800", 480, "strong", "iter_s")
OTHER = replace(KEY, figure="fig7")


def world(found: Constants) -> list[Row]:
    """Two rows that depend on two constants: the truth is product 0.7 and ring 0.5."""
    return [
        Row(key=KEY, unit="s", predicted=1 / found.product, published=1 / 0.7),
        Row(key=OTHER, unit="s", predicted=found.product / found.ring, published=0.7 / 0.5),
    ]


def test_a_fit_finds_the_constants_behind_the_rows():
    found = fit_constants(world, constants(), ("product", "ring"), finest=0.001).constants
    assert found.product == pytest.approx(0.7, rel=0.01)
    assert found.ring == pytest.approx(0.5, rel=0.01)


def test_constants_stay_inside_their_bounds():
    def absurd(found: Constants) -> list[Row]:
        return [Row(key=KEY, unit="s", predicted=found.product, published=100.0)]

    found = fit_constants(absurd, constants(), ("product",)).constants
    assert found.product == BOUNDS["product"][1]


def test_what_is_not_named_stays():
    found = fit_constants(world, constants(), ("product",)).constants
    assert replace(found, product=constants().product) == constants()


def test_every_constant_has_bounds_around_its_value():
    for field in fields(Constants):
        low, high = BOUNDS.get(field.name, (0.0, 1.0))
        assert low <= getattr(constants(), field.name) <= high, field.name


def test_a_figure_or_a_row_left_out_does_not_count():
    one, two = world(constants())
    assert counted(one)
    assert not without("table3")(one)
    assert without("table3")(two)
    assert not without_row(KEY)(one)


def test_a_row_that_follows_from_another_does_not_count_twice():
    row = Row(key=replace(KEY, metric="ktok_s"), unit="k", predicted=1.0, published=1.1)
    assert not counted(row)


def test_the_errors_of_what_was_left_out_are_recorded():
    assert all(0 <= error < 1 for error in left_out().values())

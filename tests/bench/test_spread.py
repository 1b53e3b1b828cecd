"""A figure is a median with its spread."""

import pytest

from weft.bench.spread import spread


def test_the_spread_is_the_least_the_median_and_the_ninetieth_percentile() -> None:
    found = spread([float(n) for n in range(100, 0, -1)])
    assert (found.least, found.median, found.p90, found.repeats) == (1.0, 50.5, 91.0, 100)


def test_one_repeat_is_its_own_spread() -> None:
    found = spread([2.0])
    assert (found.least, found.median, found.p90) == (2.0, 2.0, 2.0)


def test_no_repeat_has_no_spread() -> None:
    with pytest.raises(AssertionError, match="no repeats"):
        spread([])


def test_another_unit_changes_the_figures_and_not_their_number() -> None:
    found = spread([1.0, 2.0, 3.0]).scaled(1e3)
    assert found.record() == {"min": 1000.0, "median": 2000.0, "p90": 3000.0, "repeats": 3}
    assert found.text(0) == "2000 (1000 to 3000)"

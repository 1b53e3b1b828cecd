"""A check that could not have failed does not hold."""

from pathlib import Path

from weft.testing.chaos.result import Result, Size


def test_a_promise_holds_only_where_the_control_was_found() -> None:
    for faults, control, holds in (((), "seen", True), ((), "", False), (("a",), "seen", False)):
        result = Result(promise="R0", counts={"trials": 3}, faults=faults, control=control)
        assert result.holds is holds
        assert str(result).startswith("holds " if holds else "BROKEN ")


def test_sizes_lie_between_those_of_ci_and_the_full_ones() -> None:
    sizes = [Size(folder=Path(), scale=scale, seed=0).of(40, 500) for scale in (0, 0.5, 1)]
    assert sizes == [40, 270, 500]
    assert Size(folder=Path(), scale=1, seed=0, limit=7).of(40, 500) == 7

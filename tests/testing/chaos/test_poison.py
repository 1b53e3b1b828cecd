"""No rank takes a step that is not finite on one."""

from weft.ops.registry import reference_bodies
from weft.testing.chaos import poison
from weft.testing.chaos.result import Size


def test_a_few_bad_numbers(least: Size) -> None:
    result = poison.check(least)
    assert result.holds, result
    assert result.peaks["operators"] == 2


def test_every_place_is_an_operator() -> None:
    assert set(poison.PLACES) <= set(reference_bodies())

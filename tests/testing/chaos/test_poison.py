"""No rank takes a step that is not finite on one."""

from weft.testing.chaos import poison
from weft.testing.chaos.result import Size


def test_a_few_bad_numbers(least: Size) -> None:
    result = poison.check(least)
    assert result.holds, result
    assert result.counts["operators"] >= 8

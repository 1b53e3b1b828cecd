"""The order of samples does not depend on who runs them."""

from weft.testing.chaos import order
from weft.testing.chaos.result import Size


def test_a_few_runs_have_one_order(least: Size) -> None:
    result = order.check(least)
    assert result.holds, result

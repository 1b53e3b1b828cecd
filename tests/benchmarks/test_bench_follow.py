"""A layout follows by a yardstick, early and late."""

import bench_follow as bench
import numpy as np
import pytest
from bench_layouts import chosen

from weft.config.load import build

SINGLE = build(bench.RECIPE, ("train.precision=float32",))


def verdict(yardsticks):
    return bench.verdict({"yardsticks": yardsticks, "times_halved": 1.0})


def test_a_run_is_as_far_as_its_worst_part() -> None:
    one = [5.0] * 20
    halved = [*[5.001] * 10, *[5.01] * 10]
    yardstick = bench.yardstick_of(bench.apart(halved, one), SINGLE)
    early = bench.far(bench.apart([5.003, *[5.0] * 19], one), yardstick)
    late = bench.far(bench.apart([*[5.0] * 19, 5.015], one), yardstick)
    assert early == pytest.approx(3.0)
    assert late == pytest.approx(1.5)
    assert "DOES NOT" in verdict(early)
    assert "DOES NOT" not in verdict(late)
    assert bench.verdict(bench.apart(halved, one)) == ""


@pytest.mark.parametrize("place", [0, 19])
def test_a_loss_that_is_no_number_follows_nothing(place) -> None:
    one, lost = [5.0] * 20, [5.0] * 20
    lost[place] = np.nan
    yardstick = bench.yardstick_of(bench.apart([5.1] * 20, one), SINGLE)
    far = bench.far(bench.apart(lost, one), yardstick)
    assert "DOES NOT" in verdict(far)


@pytest.mark.parametrize(("dtype", "eps"), [("float32", 2.0**-23), ("bfloat16", 2.0**-7)])
def test_a_yardstick_is_no_shorter_than_rounding(dtype, eps) -> None:
    config = build(bench.RECIPE, (f"train.precision={dtype}",))
    one = [5.0] * 20
    same = bench.yardstick_of(bench.apart(one, one), config)
    assert set(same.values()) == {eps * 5.0 / 8192**0.5}  # the tokens of a step
    assert bench.far(bench.apart(one, one), same) == 0
    assert bench.far(bench.apart([5.001 + eps] * 20, one), same) > bench.TWICE
    longer = bench.yardstick_of(bench.apart([5.1] * 20, one), config)
    assert longer["largest"] == pytest.approx(0.1)


def test_words_choose_layouts() -> None:
    assert list(chosen(["pp2"])) == ["pp2", "pp2 zero-bubble"]
    assert len(chosen([])) == len(bench.LAYOUTS) == 13

"""A layout follows by a yardstick, early and late."""

import bench_follow as bench
import numpy as np
import pytest
from bench_layouts import chosen


def test_a_run_is_as_far_as_its_worst_part() -> None:
    one = [5.0] * 20
    halved = [*[5.001] * 10, *[5.01] * 10]
    yardstick = bench.apart(halved, one)
    early = bench.far(bench.apart([5.003, *[5.0] * 19], one), yardstick)
    late = bench.far(bench.apart([*[5.0] * 19, 5.015], one), yardstick)
    assert early == pytest.approx(3.0)
    assert late == pytest.approx(1.5)
    assert "DOES NOT" in bench.verdict({"yardsticks": early})
    assert "DOES NOT" not in bench.verdict({"yardsticks": late})
    assert bench.verdict(yardstick) == ""


@pytest.mark.parametrize("place", [0, 19])
def test_a_loss_that_is_no_number_follows_nothing(place) -> None:
    one, lost = [5.0] * 20, [5.0] * 20
    lost[place] = np.nan
    far = bench.far(bench.apart(lost, one), bench.apart([5.1] * 20, one))
    assert "DOES NOT" in bench.verdict({"yardsticks": far})


def test_a_yardstick_of_no_length_lets_nothing_but_the_same_pass() -> None:
    one = [5.0] * 20
    same = bench.apart(one, one)
    assert bench.far(same, same) == 0
    assert bench.far(bench.apart([5.0001] * 20, one), same) > bench.TWICE


def test_words_choose_layouts() -> None:
    assert list(chosen(["pp2"])) == ["pp2", "pp2 zero-bubble"]
    assert len(chosen([])) == len(bench.LAYOUTS) == 13

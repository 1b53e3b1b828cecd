"""The rate climbs to the peak, falls to the floor, and never leaves the two."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.config.optim import OptimConfig
from weft.optim.lr import learning_rate, scheduled, stable_rate


@given(st.integers(0, 50), st.integers(1, 200), st.floats(0, 1), st.floats(1e-6, 1))
def test_rate_rises_to_the_peak_and_then_falls_to_the_floor(warmup, rest, floor, peak) -> None:
    total = warmup + rest
    rates = [
        learning_rate(step, peak=peak, floor_ratio=floor, warmup=warmup, total=total)
        for step in range(total)
    ]
    rise, fall = rates[:warmup], rates[warmup:]
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)
    assert not warmup or rise[-1] == peak
    assert abs(rates[-1] - peak * floor) <= 1e-12 * peak
    assert all(0 < rate <= peak for rate in rise)
    assert all(peak * floor * (1 - 1e-12) <= rate <= peak for rate in fall)


def test_first_update_is_not_wasted_and_later_ones_stay_at_the_floor() -> None:
    shape = {"peak": 2.0, "floor_ratio": 0.25, "warmup": 4, "total": 10}
    assert learning_rate(0, **shape) == 0.5
    assert learning_rate(9, **shape) == learning_rate(500, **shape) == 0.5


def test_a_run_that_is_all_warm_up_has_no_cosine() -> None:
    rates = [learning_rate(s, peak=1.0, floor_ratio=0.1, warmup=4, total=4) for s in range(4)]
    assert rates == [0.25, 0.5, 0.75, 1.0]


def test_the_stable_schedule_is_level_until_its_decay_and_ends_at_the_floor():
    shape = {"peak": 2.0, "floor_ratio": 0.1, "warmup": 5, "decay": 10}
    rates = [stable_rate(step, total=50, **shape) for step in range(50)]
    assert rates[:5] == [2.0 * (step + 1) / 5 for step in range(5)]
    assert set(rates[5:40]) == {2.0}
    assert rates[39] > rates[40] > rates[48] > rates[49]
    assert rates[49] == pytest.approx(0.2)


def test_more_steps_change_nothing_before_the_decay():
    shape = {"peak": 1.0, "floor_ratio": 0.0, "warmup": 3, "decay": 4}
    short, long = ([stable_rate(s, total=n, **shape) for s in range(16)] for n in (20, 40))
    assert short == long


@pytest.mark.parametrize("step", [0, 3, 11, 19])
def test_a_recipe_says_which_schedule_it_is(step):
    shape = {"lr": 0.5, "warmup_steps": 4}
    cosine = OptimConfig(**shape)
    stable = OptimConfig(**shape, schedule="warmup_stable_decay", decay_steps=5)
    plain = {"peak": 0.5, "floor_ratio": 0.1, "warmup": 4, "total": 20}
    assert scheduled(cosine, step, total=20) == learning_rate(step, **plain)
    assert scheduled(stable, step, total=20) == stable_rate(step, decay=5, **plain)

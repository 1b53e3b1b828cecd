import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.testing.routing import (
    GENERATORS,
    balanced,
    idle_half,
    one_empty,
    one_overflowing,
    skewed,
    tied,
)


def load(choices, experts=8):
    return np.bincount(choices.ravel(), minlength=experts)


@pytest.mark.parametrize("name", GENERATORS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_token_chooses_different_experts_that_exist(name, data):
    experts = data.draw(st.integers(2, 9))
    top_k = data.draw(st.integers(1, experts - 1))
    tokens = data.draw(st.integers(1, 40))
    choices = GENERATORS[name](tokens, experts, top_k, data.draw(st.integers(0, 9)))
    assert choices.shape == (tokens, top_k)
    assert choices.dtype == np.int64
    assert choices.min() >= 0
    assert choices.max() < experts
    assert all(len(set(row)) == top_k for row in choices.tolist())


@pytest.mark.parametrize("name", GENERATORS)
def test_a_seed_is_a_routing(name):
    make = GENERATORS[name]
    assert np.array_equal(make(32, 8, 2, 5), make(32, 8, 2, 5))
    if name != "tied":
        assert not np.array_equal(make(32, 8, 2, 5), make(32, 8, 2, 6))


def test_balanced_experts_have_the_same_rows():
    assert set(load(balanced(32, 8, 2, 0))) == {8}
    assert set(load(balanced(31, 8, 2, 0))) == {7, 8}


def test_skewed_experts_have_more_rows_the_more_popular_they_are():
    found = load(skewed(4096, 8, 2, 0))
    assert list(found) == sorted(found, reverse=True)
    assert found[0] > 4 * found[-1]


def test_one_expert_is_left_out():
    assert np.count_nonzero(load(one_empty(32, 8, 2, 0)) == 0) == 1


def test_one_expert_gets_every_token():
    assert max(load(one_overflowing(32, 8, 2, 0))) == 32


def test_half_of_the_experts_receive_nothing():
    assert not load(idle_half(32, 8, 2, 0))[4:].any()
    assert load(idle_half(32, 8, 2, 0))[:4].all()


def test_ties_go_to_the_lowest_ids():
    assert (tied(5, 8, 3, 0) == [0, 1, 2]).all()

"""Cases: the same on every call, and as hard as their labels say."""

import pytest
import torch

from weft.testing.case import Maker, cases, routings, rows_of


def maker():
    return Maker(generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")


def test_cases_are_the_same_on_every_call():
    first, second = (cases("swiglu", torch.float32)["18_rows"].inputs for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_narrow_case_is_the_rounded_wide_one():
    wide, narrow = (cases("project", t)["rows"].inputs[0] for t in (torch.float64, torch.bfloat16))
    assert torch.equal(wide.bfloat16(), narrow)


def test_routings_are_as_hard_as_they_say():
    found = routings(maker())
    assert not (found["empty_expert"] == 2).any()
    assert found["all_to_one"].unique().tolist() == [3]
    assert found["no_tokens"].shape[0] == 0


def test_rows_of_lists_choices_by_expert_then_by_choice():
    assert rows_of(torch.tensor([[2, 1], [1, 0]]), 1, 2) == [1, 2, 0]


def test_an_operator_without_cases_says_what_to_do():
    with pytest.raises(KeyError, match="case"):
        cases("unheard_of", torch.float64)

"""Biases: sums in the dtype of the accumulator, and none of no rows."""

import torch

from weft.ops.bias import (
    add_bias,
    add_bias_wgrad,
    add_expert_bias,
    add_expert_bias_wgrad,
    add_weighted_bias_dgrad,
)


def test_narrow_gradients_are_summed_in_the_dtype_of_the_accumulator():
    dy = torch.full((4096, 3), 1.0, dtype=torch.bfloat16)
    acc = add_bias_wgrad(torch.zeros(3), dy)  # a sum in bfloat16 would stop at 256
    assert acc.tolist() == [4096.0] * 3


def test_no_rows_give_no_rows_and_no_gradient():
    b = torch.randn(5)
    assert add_bias(torch.zeros(0, 5), b).shape == (0, 5)
    assert not add_bias_wgrad(torch.zeros(5), torch.zeros(0, 5)).any()


def test_room_behind_the_last_row_changes_no_gradient():
    b, ends = torch.randn(2, 5), torch.tensor([1, 3], dtype=torch.int32)
    x = torch.randn(6, 5)
    assert torch.equal(add_expert_bias(x, b, ends)[:3], x[:3] + b[[0, 1, 1]])
    x[3:] = float("nan")
    acc = add_expert_bias_wgrad(torch.zeros(2, 5), x, ends)
    torch.testing.assert_close(acc, torch.stack((x[0], x[1] + x[2])))
    torch.testing.assert_close(
        add_weighted_bias_dgrad(x, b, ends)[:3], (x[:3] * b[[0, 1, 1]]).sum(1)
    )

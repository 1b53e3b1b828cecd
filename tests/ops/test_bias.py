"""Biases: sums in the dtype of the accumulator, and none of no rows."""

import torch

from weft.ops.bias import add_bias, add_bias_wgrad


def test_narrow_gradients_are_summed_in_the_dtype_of_the_accumulator():
    dy = torch.full((4096, 3), 1.0, dtype=torch.bfloat16)
    acc = add_bias_wgrad(torch.zeros(3), dy)  # a sum in bfloat16 would stop at 256
    assert acc.tolist() == [4096.0] * 3


def test_no_rows_give_no_rows_and_no_gradient():
    b = torch.randn(5)
    assert add_bias(torch.zeros(0, 5), b).shape == (0, 5)
    assert not add_bias_wgrad(torch.zeros(5), torch.zeros(0, 5)).any()

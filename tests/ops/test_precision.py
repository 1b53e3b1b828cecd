"""Accumulation dtypes, and products that are not rounded before they are added."""

import pytest
import torch

from weft.ops.precision import accumulation_dtype, add_product, write_product


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_sums_are_carried_in_float32_or_wider(narrow, wide):
    assert accumulation_dtype(narrow) == wide


def test_products_of_narrow_operands_are_not_rounded():
    a, b = torch.tensor([[1.0], [2**-9]]).bfloat16(), torch.ones(2, 1).bfloat16()
    assert add_product(torch.zeros(1, 1), a, b).item() == 1 + 2**-9


def test_no_rows_add_nothing():
    acc = torch.randn(3, 2)
    before = acc.clone()
    assert torch.equal(add_product(acc, torch.zeros(0, 3), torch.zeros(0, 2)), before)


def test_a_written_product_reads_nothing_and_zero_rows_write_zeros():
    acc = torch.full((3, 2), torch.nan)
    a, b = torch.randn(5, 3), torch.randn(5, 2)
    assert torch.equal(write_product(acc, a, b), add_product(torch.zeros(3, 2), a, b))
    assert not write_product(acc.fill_(torch.nan), a[:0], b[:0]).any()

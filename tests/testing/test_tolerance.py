"""Bounds: ordered as they are derived, and impossible to pass by accident."""

import pytest
import torch

from weft.errors import VerificationError
from weft.graph.opset import Tolerance
from weft.testing.tolerance import gradient_bound, relative_bound, relative_error, require_close


def test_exact_values_have_no_tolerance():
    assert relative_bound(Tolerance.EXACT, torch.bfloat16, 10_000) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_bounds_grow_with_the_class_and_with_the_sum(dtype):
    bounds = [relative_bound(t, dtype, 256) for t in Tolerance]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1]
    short, long = (relative_bound(Tolerance.MATMUL, dtype, n) for n in (16, 4096))
    assert short < long


def test_long_sums_of_narrow_values_are_bound_by_their_accumulator():
    """A bfloat16 result of 4096 terms is carried in float32, so its own rounding dominates."""
    bound = relative_bound(Tolerance.MATMUL, torch.bfloat16, 4096)
    assert bound < 1.1 * relative_bound(Tolerance.ELEMENTWISE, torch.bfloat16)


def test_derived_gradients_in_float64_have_one_bound():
    assert {gradient_bound(t, torch.float64, 10**6) for t in Tolerance} == {1e-10}


def test_a_real_product_in_each_dtype_lies_within_its_bound():
    a, b = torch.randn(64, 512), torch.randn(512, 64)
    for dtype in (torch.float32, torch.bfloat16):
        x, y = a.to(dtype), b.to(dtype)
        error = relative_error(x @ y, x.double() @ y.double())
        assert 0 < error < relative_bound(Tolerance.MATMUL, dtype, 512)


def test_one_wrong_row_of_a_hundred_is_beyond_every_bound():
    wanted = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    found = wanted.clone()
    found[17] = found[18]
    with pytest.raises(VerificationError, match="relative error"):
        require_close(found, wanted, gradient_bound(Tolerance.ATTENTION, torch.bfloat16), "rows")


def test_what_is_not_a_number_is_never_close():
    with pytest.raises(VerificationError):
        require_close(torch.tensor([float("nan")]), torch.ones(1), 1e9, "value")


def test_shapes_must_be_equal_even_where_they_broadcast():
    with pytest.raises(VerificationError, match="shape"):
        relative_error(torch.ones(3, 1), torch.ones(3, 3))


def test_zero_against_zero_is_no_error_and_nothing_against_nothing_neither():
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_error(torch.zeros(0), torch.zeros(0)) == 0

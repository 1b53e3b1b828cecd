"""Partial sums are added whatever their number and width, in one order."""

import pytest
import torch

from weft.errors import VerificationError
from weft.graph.opset import OPS
from weft.ops import norm as reference
from weft.testing.tolerance import gradient_bound, require_close

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.triton import norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def bound(length):
    return gradient_bound(OPS["rms_norm"].tolerance, torch.float32, length)


def drawn(*sizes):
    maker = torch.Generator().manual_seed(sum(map(sum, sizes)))
    return [torch.randn(*size, generator=maker).to(DEVICE) for size in sizes]


@pytest.mark.parametrize("width", [1, 33])
@pytest.mark.parametrize("parts", [1, 3, 128, 1100])  # and more than one step of them
def test_partial_sums_of_any_shape_are_added(parts, width):
    acc, partial = drawn((width,), (parts, width))
    expected = acc.double() + partial.double().sum(0)
    assert norm.add_partial_sums(acc, partial) is acc
    require_close(acc, expected, bound(parts), "acc")


@pytest.mark.parametrize(("rows", "width"), [(1, 8), (129, 520), (258, 40), (0, 8)])
def test_the_gradient_of_a_norms_weight_agrees_with_float64(rows, width):
    acc, dy, x, rstd = drawn((width,), (rows, width), (rows, width), (rows,))
    wide = [v.double() for v in (acc, dy, x, rstd)]
    expected = reference.rms_norm_wgrad(*wide, eps=0.0)
    first = norm.rms_norm_wgrad(acc.clone(), dy, x, rstd, eps=0.0)
    require_close(first, expected, bound(rows), "acc")
    assert torch.equal(first, norm.rms_norm_wgrad(acc.clone(), dy, x, rstd, eps=0.0))


def test_a_part_that_is_left_out_is_caught():
    """Sabotage: one of 513 partial sums, the only one of its step, is missing."""
    acc, partial = drawn((33,), (513, 33))
    expected = acc.double() + partial.double().sum(0)
    with pytest.raises(VerificationError):
        require_close(norm.add_partial_sums(acc, partial[:-1]), expected, bound(513), "acc")

"""Norms: scale, and the rounding of narrow values."""

import torch

from weft.ops.norm import add_rms_norm, rms_norm
from weft.testing.case import D, T


def test_normalised_rows_have_a_mean_square_of_one():
    x = 100 * torch.randn(T, D, dtype=torch.float64)
    y, _ = rms_norm(x, torch.ones(D, dtype=torch.float64), eps=0.0)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(T, dtype=torch.float64))


def test_a_row_of_zeros_stays_zero_and_has_a_finite_gradient():
    x = torch.zeros(1, D, requires_grad=True)
    y, _ = rms_norm(x, torch.ones(D), eps=1e-5)
    y.sum().backward()
    assert not y.any()
    assert torch.isfinite(x.grad).all()


def test_narrow_rows_are_rounded_once():
    """The bits of a norm in float64 but for ties: nothing is rounded before the weight."""
    x, w = torch.randn(64, D).bfloat16(), torch.randn(D).bfloat16()
    y, rstd = rms_norm(x, w, eps=1e-5)
    wide, _ = rms_norm(x.double(), w.double(), eps=1e-5)
    assert rstd.dtype == torch.float32
    assert y.dtype == torch.bfloat16
    assert (y == wide.bfloat16()).float().mean() > 0.99


def test_residual_sum_is_what_is_normalised():
    x, r, w = torch.randn(T, D), torch.randn(T, D), torch.randn(D)
    s, y, rstd = add_rms_norm(x, r, w, eps=1e-5)
    alone = rms_norm(x + r, w, eps=1e-5)
    assert torch.equal(s, x + r)
    assert torch.equal(y, alone[0])
    assert torch.equal(rstd, alone[1])

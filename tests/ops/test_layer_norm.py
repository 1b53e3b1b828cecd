"""LayerNorm: no mean, unit deviation, and torch's own values."""

import torch
import torch.nn.functional as F

from weft.ops.layer_norm import add_layer_norm, layer_norm
from weft.testing.case import D, T


def test_values_are_those_of_torch():
    x, w, b = 3 + torch.randn(T, D).double(), torch.randn(D).double(), torch.randn(D).double()
    y, mean, rstd = layer_norm(x, w, b, eps=1e-5)
    torch.testing.assert_close(y, F.layer_norm(x, (D,), w, b, 1e-5))
    torch.testing.assert_close(mean, x.mean(-1))
    torch.testing.assert_close(rstd, (x.var(-1, correction=0) + 1e-5).rsqrt())


def test_a_constant_row_is_its_bias_and_has_a_finite_gradient():
    x = torch.full((1, D), 7.0, requires_grad=True)
    b = torch.randn(D)
    y, _, _ = layer_norm(x, torch.ones(D), b, eps=1e-5)
    y.sum().backward()
    torch.testing.assert_close(y[0], b)
    assert torch.isfinite(x.grad).all()


def test_residual_sum_is_what_is_normalised():
    x, r, w, b = torch.randn(T, D), torch.randn(T, D), torch.randn(D), torch.randn(D)
    s, *found = add_layer_norm(x, r, w, b, eps=1e-5)
    assert torch.equal(s, x + r)
    alone = layer_norm(x + r, w, b, eps=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))

"""LayerNorm, alone and behind a residual sum; its gradients from the kept mean and deviation.

    n = (x - mean) rstd        y = n w + b        rstd = (mean((x - mean)^2) + eps)^(-1/2)

    dx = rstd (g - mean(g) - n mean(g n))        g = dy w
    dw = sum over rows of dy n                   db = sum over rows of dy

Each value is rounded to its own dtype once, at the end.
"""

import torch
from torch import Tensor

from weft.ops.precision import accumulation_dtype


def layer_norm(x: Tensor, w: Tensor, b: Tensor, *, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the normalised rows, their means and their reciprocal deviations.

    Shapes:
        x [T, D], w [D], b [D] -> y [T, D], mean [T], rstd [T]
    """
    wide = x.to(accumulation_dtype(x.dtype))
    variance, mean = torch.var_mean(wide, dim=-1, correction=0)
    rstd = (variance + eps).rsqrt()
    return (_normal(wide, mean, rstd) * w + b).to(x.dtype), mean, rstd


def layer_norm_dgrad(
    dy: Tensor, x: Tensor, w: Tensor, mean: Tensor, rstd: Tensor, *, eps: float
) -> Tensor:
    """Returns the gradient of the input of `layer_norm`; `eps` is already inside `rstd`."""
    return _dgrad(dy, x, w, mean, rstd).to(x.dtype)


def layer_norm_wgrad(
    w_acc: Tensor, b_acc: Tensor, dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of weight and bias, sums over all rows, into their accumulators."""
    wide = dy.to(w_acc.dtype)
    w_acc.add_((wide * _normal(x.to(wide.dtype), mean, rstd)).sum(0))
    return w_acc, b_acc.add_(wide.sum(0))


def add_layer_norm(
    x: Tensor, r: Tensor, w: Tensor, b: Tensor, *, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the residual sum, and of it what `layer_norm` returns."""
    s = x + r
    return (s, *layer_norm(s, w, b, eps=eps))


def add_layer_norm_dgrad(
    ds: Tensor, dy: Tensor, s: Tensor, w: Tensor, mean: Tensor, rstd: Tensor, *, eps: float
) -> Tensor:
    """Returns the gradient of either operand of the residual sum: they are one value."""
    return _dgrad(dy, s, w, mean, rstd).add_(ds).to(s.dtype)


def add_layer_norm_wgrad(
    w_acc: Tensor,
    b_acc: Tensor,
    ds: Tensor,
    dy: Tensor,
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of weight and bias into their accumulators; `ds` does not reach them."""
    return layer_norm_wgrad(w_acc, b_acc, dy, s, mean, rstd, eps=eps)


def _normal(x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return (x - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)


def _dgrad(dy: Tensor, x: Tensor, w: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    n, g = _normal(x.to(rstd.dtype), mean, rstd), dy.to(rstd.dtype) * w
    g = g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True)
    return g.mul_(rstd.unsqueeze(-1))

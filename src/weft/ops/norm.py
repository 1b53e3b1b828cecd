"""RMSNorm, alone and behind a residual sum; its gradients from the kept reciprocal root mean
square.

    y = x rstd w        rstd = (mean(x^2) + eps)^(-1/2)

    dx = rstd (g - x c)      g = dy w,  c = rstd^2 mean(g x)
    dw = sum over rows of dy x rstd

Each value is rounded to its own dtype once, at the end.
"""

import torch
from torch import Tensor

from weft.ops.precision import accumulation_dtype


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Returns `(mean(x^2) + eps)^(-1/2)` along the last dim, in the accumulation dtype."""
    length = torch.linalg.vector_norm(x, dim=-1, dtype=accumulation_dtype(x.dtype))
    return (length * length / x.shape[-1] + eps).rsqrt()


def normalise(x: Tensor, w: Tensor, rstd: Tensor) -> Tensor:
    """Returns `x rstd w`, rounded once to the dtype of `x`."""
    return (x * rstd.unsqueeze(-1)).mul_(w).to(x.dtype)


def normalise_dgrad(dy: Tensor, x: Tensor, w: Tensor, rstd: Tensor) -> Tensor:
    """Returns the gradient of the input, through `rstd` too, in the accumulation dtype."""
    g = dy.to(rstd.dtype) * w
    share = (g * x).sum(-1).mul_(rstd**3).div_(-x.shape[-1])  # -rstd c
    return g.mul_(rstd.unsqueeze(-1)).addcmul_(x.to(rstd.dtype), share.unsqueeze(-1))


def normalise_wgrad(acc: Tensor, dy: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """Adds the gradient of the weight of `normalise`, a sum over all rows, into `acc`."""
    products = (dy.to(acc.dtype) * x).flatten(0, -2)
    return acc.addmv_(products.T, rstd.flatten().to(acc.dtype))


def rms_norm(x: Tensor, w: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Returns the normalised rows and their reciprocal root mean square."""
    rstd = inverse_rms(x, eps)
    return normalise(x, w, rstd), rstd


def rms_norm_dgrad(dy: Tensor, x: Tensor, w: Tensor, rstd: Tensor, *, eps: float) -> Tensor:
    """Returns the gradient of the input of `rms_norm`; `eps` is already inside `rstd`."""
    return normalise_dgrad(dy, x, w, rstd).to(x.dtype)


def rms_norm_wgrad(acc: Tensor, dy: Tensor, x: Tensor, rstd: Tensor, *, eps: float) -> Tensor:
    """Adds the gradient of the weight of `rms_norm` into `acc`."""
    return normalise_wgrad(acc, dy, x, rstd)


def add_rms_norm(x: Tensor, r: Tensor, w: Tensor, *, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the residual sum, its normalised rows and their reciprocal root mean square."""
    s = x + r
    rstd = inverse_rms(s, eps)
    return s, normalise(s, w, rstd), rstd


def add_rms_norm_dgrad(
    ds: Tensor, dy: Tensor, s: Tensor, w: Tensor, rstd: Tensor, *, eps: float
) -> Tensor:
    """Returns the gradient of either operand of the residual sum: they are one value."""
    return normalise_dgrad(dy, s, w, rstd).add_(ds).to(s.dtype)


def add_rms_norm_wgrad(
    acc: Tensor, ds: Tensor, dy: Tensor, s: Tensor, rstd: Tensor, *, eps: float
) -> Tensor:
    """Adds the gradient of the norm's weight into `acc`; `ds` does not reach it."""
    return normalise_wgrad(acc, dy, s, rstd)

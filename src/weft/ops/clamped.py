"""The SwiGLU of gpt-oss: operands clamped, the gate's sigmoid steeper, the up half one more.

    g = min(gate, limit)      t = clamp(up, -limit, limit)
    s = (t + 1) g sigmoid(alpha g) weight

A clamped operand has no gradient; at the limit itself it still has. `clamped_glu` is the same
without the weight, which then multiplies behind the second product of the experts.
"""

import torch
from torch import Tensor


def clamped_swiglu(u: Tensor, row_weights: Tensor, *, alpha: float, limit: float) -> Tensor:
    """Returns the gated rows.

    Shapes:
        u [R, 2F] = [gate | up], row_weights [R] -> s [R, F]
    """
    return clamped_glu(u, alpha=alpha, limit=limit) * row_weights.unsqueeze(-1).to(u.dtype)


def clamped_swiglu_dgrad(
    ds: Tensor, u: Tensor, row_weights: Tensor, *, alpha: float, limit: float
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the pre-activations and of the rows' weights.

    Numerics:
        The weight's gradient is one sum over F, in the dtype of `row_weights`.
    """
    rule = {"alpha": alpha, "limit": limit}
    dweight = (ds * clamped_glu(u, **rule)).sum(-1, dtype=row_weights.dtype)
    return clamped_glu_dgrad(ds * row_weights.unsqueeze(-1).to(u.dtype), u, **rule), dweight


def clamped_glu(u: Tensor, *, alpha: float, limit: float) -> Tensor:
    """Returns the gated rows, not weighted.

    Shapes:
        u [R, 2F] = [gate | up] -> s [R, F]
    """
    gate, up = u.chunk(2, dim=-1)
    g, t = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (t + 1) * g * (alpha * g).sigmoid()


def clamped_glu_dgrad(ds: Tensor, u: Tensor, *, alpha: float, limit: float) -> Tensor:
    """Returns the gradient of the pre-activations.

    Shapes:
        ds [R, F], u [R, 2F] -> du [R, 2F]
    """
    gate, up = u.chunk(2, dim=-1)
    g, t = gate.clamp(max=limit), up.clamp(-limit, limit)
    open_ = (alpha * g).sigmoid()
    glu = g * open_
    dgate = ds * (t + 1) * (open_ + alpha * glu * (1 - open_)) * (gate <= limit)
    return torch.cat((dgate, ds * glu * (up.abs() <= limit)), dim=-1)

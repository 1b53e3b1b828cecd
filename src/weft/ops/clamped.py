"""The SwiGLU of gpt-oss: operands clamped, the gate's sigmoid steeper, the up half one more.

    g = min(gate, limit)      t = clamp(up, -limit, limit)
    s = (t + 1) g sigmoid(alpha g) weight

A clamped operand has no gradient; at the limit itself it still has.
"""

import torch
from torch import Tensor


def clamped_swiglu(u: Tensor, row_weights: Tensor, *, alpha: float, limit: float) -> Tensor:
    """Returns the gated rows.

    Shapes:
        u [R, 2F] = [gate | up], row_weights [R] -> s [R, F]
    """
    gate, up = u.chunk(2, dim=-1)
    g, t = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (t + 1) * g * (alpha * g).sigmoid() * row_weights.unsqueeze(-1).to(u.dtype)


def clamped_swiglu_dgrad(
    ds: Tensor, u: Tensor, row_weights: Tensor, *, alpha: float, limit: float
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the pre-activations and of the rows' weights.

    Numerics:
        The weight's gradient is one sum over F, in the dtype of `row_weights`.
    """
    gate, up = u.chunk(2, dim=-1)
    g, t = gate.clamp(max=limit), up.clamp(-limit, limit)
    open_ = (alpha * g).sigmoid()
    glu = g * open_
    dweight = (ds * glu * (t + 1)).sum(-1, dtype=row_weights.dtype)
    ds = ds * row_weights.unsqueeze(-1).to(u.dtype)
    dgate = ds * (t + 1) * (open_ + alpha * glu * (1 - open_)) * (gate <= limit)
    dup = ds * glu * (up.abs() <= limit)
    return torch.cat((dgate, dup), dim=-1), dweight

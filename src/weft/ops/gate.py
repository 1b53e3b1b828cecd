"""The gate on a shared expert: each token weighs its output by a sigmoid.

    z = s f        s = sigmoid(h . w)

    df = s dz      t = s (1 - s) (dz . f)      dh = t w      dw = sum over rows of t h

The gate is computed in the accumulation dtype, as the router's logits are.
"""

import torch
from torch import Tensor

from weft.ops.precision import accumulation_dtype


def shared_gate(f: Tensor, h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weighed rows and their gates.

    Shapes:
        f [T, D], h [T, D], w [1, D] -> z [T, D], gate [T]
    """
    acc = accumulation_dtype(h.dtype)
    gate = (h.to(acc) @ w[0].to(acc)).sigmoid()
    return (f * gate.unsqueeze(-1)).to(f.dtype), gate


def shared_gate_dgrad(dz: Tensor, f: Tensor, w: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the shared expert's output and of what the gate looks at."""
    df = (dz * gate.unsqueeze(-1)).to(f.dtype)
    return df, torch.outer(_dlogit(dz, f, gate), w[0].to(gate.dtype)).to(w.dtype)


def shared_gate_wgrad(acc: Tensor, dz: Tensor, f: Tensor, h: Tensor, gate: Tensor) -> Tensor:
    """Adds the gradient of the gate's weight into `acc`."""
    acc[0].addmv_(h.to(acc.dtype).T, _dlogit(dz, f, gate).to(acc.dtype))
    return acc


def _dlogit(dz: Tensor, f: Tensor, gate: Tensor) -> Tensor:
    return (dz.to(gate.dtype) * f).sum(-1).mul_(gate * (1 - gate))

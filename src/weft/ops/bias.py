"""Biases: of a projection, of the router, of the experts.

    y = x + b              db = sum over rows of dy
    y = x + b[expert]      db[l] = sum over the rows of expert l
    y = x + r b[expert]    dr = dy . b[expert]      db[l] = sum over the rows of expert l of r dy

The bias of an expert's second product is multiplied by the row's gate weight r, since the weight
has multiplied the rest already (paper 2.3). Rows are sorted by expert; `ends[l]` is the row after
expert l's last. Sums run over neighbouring rows in order and `ends` stays on the device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.ops.linear import router_logits_dgrad
from weft.ops.precision import accumulation_dtype, add_product


def add_bias(x: Tensor, b: Tensor) -> Tensor:
    """Returns every row plus `b`."""
    return x + b


def add_bias_wgrad(acc: Tensor, dy: Tensor) -> Tensor:
    """Adds the sum of all rows into `acc`."""
    return acc.add_(dy.sum(0, dtype=acc.dtype))


def biased_router_logits(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Returns the router's logits, computed in the accumulation dtype."""
    acc = accumulation_dtype(h.dtype)
    return F.linear(h.to(acc), w.to(acc), b.to(acc))


def biased_router_logits_dgrad(dlogits: Tensor, w: Tensor) -> Tensor:
    """Returns the gradient of the router's input, in the dtype of its weight."""
    return router_logits_dgrad(dlogits, w)


def biased_router_logits_wgrad(
    w_acc: Tensor, b_acc: Tensor, dlogits: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of weight and bias into their accumulators."""
    return add_product(w_acc, dlogits, h), add_bias_wgrad(b_acc, dlogits)


def add_expert_bias(x: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Returns every row plus the bias of its expert.

    Shapes:
        x [R, 2F], b [L, 2F], ends [L] -> y [R, 2F]
    """
    return x + _of_rows(b, ends, x.shape[0])


def add_expert_bias_wgrad(acc: Tensor, dy: Tensor, ends: Tensor) -> Tensor:
    """Adds the sum of each expert's rows into `acc`."""
    return _add_sums(acc, dy, ends)


def add_weighted_bias(x: Tensor, row_weights: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Returns every row plus the bias of its expert times the row's gate weight.

    Shapes:
        x [R, D], row_weights [R], b [L, D], ends [L] -> y [R, D]
    """
    return x + (row_weights.unsqueeze(-1) * _of_rows(b, ends, x.shape[0])).to(x.dtype)


def add_weighted_bias_dgrad(dy: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Returns the gradient of the gate weights, in the accumulation dtype."""
    wide = accumulation_dtype(dy.dtype)
    return (dy.to(wide) * _of_rows(b, ends, dy.shape[0])).sum(-1)


def add_weighted_bias_wgrad(acc: Tensor, dy: Tensor, row_weights: Tensor, ends: Tensor) -> Tensor:
    """Adds the weighted sum of each expert's rows into `acc`."""
    return _add_sums(acc, dy.to(acc.dtype) * row_weights.unsqueeze(-1), ends)


def _of_rows(b: Tensor, ends: Tensor, rows: int) -> Tensor:
    """The bias of each row's expert."""
    place = torch.arange(rows, dtype=ends.dtype, device=ends.device)
    expert = torch.searchsorted(ends, place, right=True)
    return b.index_select(0, expert.clamp_max(len(b) - 1))  # behind the last end is room alone


def _add_sums(acc: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    edges = torch.cat((ends.new_zeros(1), ends)).long()
    return acc.add_(torch.segment_reduce(rows.to(acc.dtype), "sum", offsets=edges, initial=0))

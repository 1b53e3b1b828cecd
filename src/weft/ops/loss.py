"""Cross entropy of the head in chunks of rows, so that tokens x vocabulary never exists.

    loss += sum over valid targets of (lse(h W^T) - (h W^T)[target]) / divisor
    dlogits = (softmax - onehot(target)) / divisor, 0 where the target is not valid

A negative target is ignored. The divisor is the number of valid targets of the whole global batch,
known before, so the loss of a step is a plain sum over ranks and micro-batches.
`cross_entropy_fused` gives the gradients in the same pass, while the logits of a chunk are there.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.ops.precision import accumulation_dtype, add_narrow_product, add_product


def cross_entropy(
    h: Tensor, w: Tensor, targets: Tensor, divisor: float, loss: Tensor, *, chunk: int
) -> Tensor:
    """Adds the loss of these rows to `loss`.

    Shapes:
        h [T, D], w [V, D], targets [T], loss [1]
    """
    acc = accumulation_dtype(h.dtype)
    for rows, wanted in zip(h.split(chunk), targets.split(chunk), strict=True):
        logits = F.linear(rows, w).to(acc)
        loss += F.cross_entropy(logits, _ignorable(wanted), reduction="sum") / divisor
    return loss


def cross_entropy_fused(
    h: Tensor,
    w: Tensor,
    targets: Tensor,
    divisor: float,
    loss: Tensor,
    w_acc: Tensor,
    *,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds the loss to `loss` and the weight's gradient to `w_acc`, and returns them around the
    rows' gradient.

    Numerics:
        Softmax and losses in the accumulation dtype; the chunk's gradient is rounded to the dtype
        of `h` once.
    """
    return _fused(add_product, h, w, targets, divisor, loss, w_acc, chunk)


def cross_entropy_fused_narrow(
    h: Tensor,
    w: Tensor,
    targets: Tensor,
    divisor: float,
    loss: Tensor,
    w_acc: Tensor,
    *,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Does the same with the operands of the weight's gradient left in their narrow dtype."""
    return _fused(add_narrow_product, h, w, targets, divisor, loss, w_acc, chunk)


def _fused(
    add: Callable[[Tensor, Tensor, Tensor], Tensor],
    h: Tensor,
    w: Tensor,
    targets: Tensor,
    divisor: float,
    loss: Tensor,
    w_acc: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dh = torch.empty_like(h)
    for rows, wanted, drows in zip(
        h.split(chunk), targets.split(chunk), dh.split(chunk), strict=True
    ):
        dlogits, nll = _gradient(F.linear(rows, w).to(loss.dtype), wanted, divisor)
        loss += nll.sum() / divisor
        dlogits = dlogits.to(h.dtype)
        torch.mm(dlogits, w, out=drows)
        add(w_acc, dlogits, rows)
    return loss, dh, w_acc


def biased_cross_entropy(
    h: Tensor, w: Tensor, b: Tensor, targets: Tensor, divisor: float, loss: Tensor, *, chunk: int
) -> Tensor:
    """Adds the loss of these rows to `loss`, of a head with a bias [V]."""
    acc = accumulation_dtype(h.dtype)
    for rows, wanted in zip(h.split(chunk), targets.split(chunk), strict=True):
        logits = F.linear(rows, w, b).to(acc)
        loss += F.cross_entropy(logits, _ignorable(wanted), reduction="sum") / divisor
    return loss


def biased_cross_entropy_fused(
    h: Tensor,
    w: Tensor,
    b: Tensor,
    targets: Tensor,
    divisor: float,
    loss: Tensor,
    w_acc: Tensor,
    b_acc: Tensor,
    *,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adds the loss to `loss` and both gradients to `w_acc` and `b_acc`, and returns them around
    the rows' gradient.
    """
    dh = torch.empty_like(h)
    for rows, wanted, drows in zip(
        h.split(chunk), targets.split(chunk), dh.split(chunk), strict=True
    ):
        dlogits, nll = _gradient(F.linear(rows, w, b).to(loss.dtype), wanted, divisor)
        loss += nll.sum() / divisor
        b_acc += dlogits.sum(0)
        dlogits = dlogits.to(h.dtype)
        torch.mm(dlogits, w, out=drows)
        add_product(w_acc, dlogits, rows)
    return loss, dh, w_acc, b_acc


def _gradient(logits: Tensor, targets: Tensor, divisor: float) -> tuple[Tensor, Tensor]:
    """Returns the gradient of the logits and the loss of each row."""
    valid = (targets >= 0).unsqueeze(-1)
    column = targets.clamp_min(0).unsqueeze(-1)
    # log_softmax takes the maximum off first: a log-sum-exp less a logit would lose the digits of
    # large logits
    log_p = logits.log_softmax(-1)
    nll = -log_p.gather(-1, column).masked_fill(~valid, 0)
    share = valid.to(logits.dtype) / divisor
    return log_p.exp_().mul_(share).scatter_add_(-1, column, -share), nll


def _ignorable(targets: Tensor) -> Tensor:
    return targets.masked_fill(targets < 0, -100)  # torch's own mark of an ignored target

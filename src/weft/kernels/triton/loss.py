"""Cross entropy of the head in chunks of rows: the products by the library, what is between in one
kernel that turns logits into their gradient in place.

    loss += sum over valid targets of (lse(h W^T) - (h W^T)[target]) / divisor
    dlogits = (softmax - onehot(target)) / divisor, 0 where the target is not valid
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.launch import launched
from weft.kernels.triton.norm import add_partial_sums
from weft.ops.precision import add_narrow_product

_COLUMNS = 4096


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

    Shapes:
        h [T, D], w [V, D], targets [T], loss [1], w_acc [V, D]

    Numerics:
        Logits are rounded to the dtype of `h` once, and so is their gradient; all between is FP32.
    """
    dh = torch.empty_like(h)
    nll = torch.empty(h.shape[0], 1, dtype=torch.float32, device=h.device)
    parts = (x.split(chunk) for x in (h, targets, dh, nll))
    for rows, wanted, drows, losses in zip(*parts, strict=True):
        logits = F.linear(rows, w)
        _to_gradient[rows.shape[0],](
            logits, wanted, losses, logits.shape[1], 1.0 / divisor, COLUMNS=_COLUMNS, num_warps=8
        )
        torch.mm(logits, w, out=drows)
        add_narrow_product(w_acc, logits, rows)
    return add_partial_sums(loss, nll), dh, w_acc


@launched
@triton.jit
def _to_gradient(logits, targets, nll, width, share, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    source = logits + row * width
    target = tl.load(targets + row)
    top = tl.full((COLUMNS,), float("-inf"), tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, width, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        x = tl.load(source + c, mask=c < width, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, x)
        # a lane that has met nothing but padding has no maximum to take off
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - shift) + tl.exp(x - shift)
        top = higher
    peak = tl.max(top, axis=0)
    lse_less_peak = tl.log(tl.sum(total * tl.exp(top - peak), axis=0))
    valid = target >= 0
    wanted = tl.load(source + tl.maximum(target, 0)).to(tl.float32)
    loss = (peak - wanted) + lse_less_peak  # in this order no digit of large logits is lost
    tl.store(nll + row, tl.where(valid, loss * share, 0.0))
    scale = tl.where(valid, share, 0.0)
    for start in range(0, width, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        x = tl.load(source + c, mask=c < width, other=float("-inf")).to(tl.float32)
        p = tl.exp(x - peak - lse_less_peak)
        tl.store(source + c, (p - (c == target)) * scale, mask=c < width)

"""The end of a step in one pass each: the gradient's sum of squares, and AdamW.

`adamw` clips, updates and refuses on the device: it reads the verdict itself, so that no gradient
is copied to be scaled, and a refused step writes nothing. The new parameters are written in the
same pass, rounded, where the gather reads them.
"""

import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.triton.norm import add_partial_sums

_BLOCK = 4096  # elements a program: 32 for each of 128 threads
_PARTS = 4096  # partial sums of squares, each over its own blocks
_LANES = 1024  # AdamW keeps five operands in flight; more would spill


def square_sum(shard: Tensor, norm2: Tensor) -> Tensor:
    """Adds the sum of squares of the shard to `norm2`.

    Numerics:
        Partial sums of equal runs, added in order.
    """
    count = shard.numel()
    if count == 0:
        return norm2
    parts = min(triton.cdiv(count, _BLOCK), _PARTS)
    partial = norm2.new_empty(parts, 1)
    blocks = triton.cdiv(triton.cdiv(count, _BLOCK), parts)
    _square_sum[parts,](shard, partial, count, blocks, BLOCK=_BLOCK, num_warps=4)
    return add_partial_sums(norm2, partial)


def adamw(
    shard: Tensor,
    verdict: Tensor,
    rates: tuple[float, float, int],
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    own: Tensor,
    decay: int,
    *,
    beta1: float,
    beta2: float,
    eps: float,
) -> Tensor:
    """Updates the state in place unless the verdict refuses the step; returns the parameters."""
    lr, weight_decay, step = rates
    count = master.numel()
    if count:
        _adamw[triton.cdiv(count, _LANES),](
            shard, verdict, master, mean, square, own, count, decay,
            lr / (1 - beta1**step), 1 - lr * weight_decay, (1 - beta2**step) ** -0.5,
            BETA1=beta1, BETA2=beta2, EPS=eps, BLOCK=_LANES, num_warps=4,
        )  # fmt: skip
    return own


@triton.jit
def _square_sum(shard, partial, count, blocks, BLOCK: tl.constexpr):
    part = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(blocks):
        at = (part * blocks + block) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(shard + at, mask=at < count, other=0.0)
        total += value * value
    tl.store(partial + part, tl.sum(total, axis=0))


@triton.jit
def _adamw(
    shard, verdict, master, mean, square, own, count, decay, rate, kept, correction,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if tl.load(verdict + 1) == 0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        g = tl.load(shard + at, mask=inside, other=0.0) * tl.load(verdict)
        m = tl.load(mean + at, mask=inside, other=0.0)
        s = tl.load(square + at, mask=inside, other=0.0)
        w = tl.load(master + at, mask=inside, other=0.0)
        m = BETA1 * m + (1 - BETA1) * g
        s = BETA2 * s + (1 - BETA2) * g * g
        w = tl.where(at < decay, w * kept, w) - rate * m / (tl.sqrt(s) * correction + EPS)
        tl.store(mean + at, m, mask=inside)
        tl.store(square + at, s, mask=inside)
        tl.store(master + at, w, mask=inside)
        tl.store(own + at, w, mask=inside)

"""The end of a step in one pass each: the gradient's sum of squares, and AdamW.

`adamw` clips, updates and refuses on the device: it reads the verdict itself, so that no gradient
is copied to be scaled, and a refused step writes nothing. The new parameters are written in the
same pass, rounded, where the gather reads them.
"""

import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.grid import cdiv
from weft.kernels.launch import launched

_BLOCK = 4096  # elements a program: 32 for each of 128 threads
_PARTS = 4096  # partial sums of squares, each over its own blocks
_GRAIN = 8  # elements that shards are a multiple of: 16 bytes of bfloat16
_LANES = 1024  # AdamW keeps five operands in flight; more would spill


def square_sum(shard: Tensor, norm2: Tensor) -> Tensor:
    """Adds the sum of squares of the shard to `norm2`.

    Numerics:
        Partial sums of equal runs, added in order.
    """
    count = shard.numel()
    if count == 0:
        return norm2
    parts = min(cdiv(count, _BLOCK), _PARTS)
    partial = norm2.new_empty(parts)
    blocks = cdiv(cdiv(count, _BLOCK), parts)
    grain = _grain(count)
    _square_sum[parts,](shard, partial, count, blocks, GRAIN=grain, BLOCK=_BLOCK, num_warps=4)
    _add_all[1,](partial, norm2, parts, BLOCK=_PARTS, num_warps=4)
    return norm2


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
        _adamw[cdiv(count, _LANES),](
            shard, verdict, master, mean, square, own, count, decay,
            lr / (1 - beta1**step), 1 - lr * weight_decay, (1 - beta2**step) ** -0.5,
            BETA1=beta1, BETA2=beta2, EPS=eps, GRAIN=_grain(count), BLOCK=_LANES, num_warps=4,
        )  # fmt: skip
    return own


def _grain(count: int) -> int:
    """How many neighbours are all there or all absent: what is known of them goes in one load."""
    return _GRAIN if count % _GRAIN == 0 else 1


@launched
@triton.jit
def _square_sum(shard, partial, count, blocks, GRAIN: tl.constexpr, BLOCK: tl.constexpr):
    part = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(blocks):
        at = (part * blocks + block) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(shard + at, mask=at // GRAIN < count // GRAIN, other=0.0)
        total += value * value
    tl.store(partial + part, tl.sum(total, axis=0))


@launched
@triton.jit
def _add_all(partial, total, count, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    found = tl.sum(tl.load(partial + at, mask=at < count, other=0.0), axis=0)
    tl.store(total, tl.load(total) + found)


@launched
@triton.jit
def _adamw(
    shard, verdict, master, mean, square, own, count, decay, rate, kept, correction,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, GRAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    if tl.load(verdict + 1) == 0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at // GRAIN < count // GRAIN
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

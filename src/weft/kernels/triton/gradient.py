"""Terms of a gradient that have arrived, added in one pass: to the own one, or to each other.

out[i] = round(own[i]) + arrived[i]          own, out FP32 and often one memory; arrived rounded
shard[i] = (b0[i] + b1[i]) + b2[i] + ...     blocks of all ranks, as an all-to-all leaves them
"""

import triton
import triton.language as tl
from torch import Tensor

from weft.comm.transports.symmetric import add_rounded as add_in_turn
from weft.kernels.grid import cdiv
from weft.kernels.launch import launched

_BLOCK, _WARPS = 4096, 8  # 16 elements a thread


def add_rounded(terms: list[Tensor], position: int, out: Tensor) -> None:
    """Adds two terms, the own one rounded to the dtype of the other; more of them in turn.

    Numerics:
        FP32, which is the sum in rank order: of two terms there is one.
    """
    if len(terms) > 2:
        add_in_turn(terms, position, out)
        return
    own, arrived = terms[position], terms[1 - position]
    grid = (cdiv(out.numel(), _BLOCK),)
    _add_two[grid](own, arrived, out, out.numel(), BLOCK=_BLOCK, num_warps=_WARPS)


def decode_grad(received: Tensor, grad: Tensor, *, ranks: int) -> Tensor:
    """Sums the blocks of all ranks into the first elements of the gradient's memory.

    Shapes:
        received [ranks z], grad [Z]; returns [z], which overlaps grad and not received.

    Numerics:
        FP32, in rank order.
    """
    size = received.numel() // ranks
    shard = grad[:size]
    grid = (cdiv(size, _BLOCK),)
    _add_blocks[grid](received, shard, size, RANKS=ranks, BLOCK=_BLOCK, num_warps=_WARPS)
    return shard


@launched
@triton.jit
def _add_blocks(received, shard, size, RANKS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.load(received + at, mask=inside).to(tl.float32)
    for _ in range(1, RANKS):
        received += size
        total += tl.load(received + at, mask=inside).to(tl.float32)
    tl.store(shard + at, total, mask=inside)


@launched
@triton.jit
def _add_two(own, arrived, out, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    other = tl.load(arrived + at, mask=inside)
    mine = tl.load(own + at, mask=inside).to(other.dtype).to(tl.float32)
    tl.store(out + at, mine + other.to(tl.float32), mask=inside)

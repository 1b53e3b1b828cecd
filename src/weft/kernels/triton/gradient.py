"""The own term of a gradient and the one that has arrived, added in one pass.

out[i] = round(own[i]) + arrived[i]          own, out FP32 and often one memory; arrived rounded
"""

import triton
import triton.language as tl
from torch import Tensor

from weft.comm.transports.symmetric import add_rounded as add_in_turn

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
    grid = (triton.cdiv(out.numel(), _BLOCK),)
    _add_two[grid](own, arrived, out, out.numel(), BLOCK=_BLOCK, num_warps=_WARPS)


@triton.jit
def _add_two(own, arrived, out, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    other = tl.load(arrived + at, mask=inside)
    mine = tl.load(own + at, mask=inside).to(other.dtype).to(tl.float32)
    tl.store(out + at, mine + other.to(tl.float32), mask=inside)

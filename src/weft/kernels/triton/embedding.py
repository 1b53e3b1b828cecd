"""The gradient of an embedding: each token's positions added up where its row lies.

Positions are sorted by token, so those of one token are a run. The program at the head of a run
walks it, the head itself and then some positions at a time, and adds its sum to the token's row;
every other program has nothing to do. Most runs are a head alone, so that one is not made to wait
for what may follow. Rows of tokens that do not occur are not touched.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.grid import cdiv, next_power_of_2
from weft.kernels.launch import launched

_ROWS, _COLUMNS = 8, 1024  # positions of a step; 16 bytes for each of 128 threads


def embed_wgrad(acc: Tensor, dx: Tensor, tokens: Tensor) -> Tensor:
    """Adds to each token's row of `acc` the gradients of its positions, in ascending position.

    Shapes:
        acc [V, D], dx [T, D], tokens [T]

    Numerics:
        One sum a token in FP32, so many positions at a time and these in order, and one addition.
    """
    ordered, order = torch.sort(tokens, stable=True)
    dx = dx.contiguous()
    count, width = dx.shape
    if count:
        columns = min(next_power_of_2(width), _COLUMNS)
        _add_runs[count, cdiv(width, columns)](
            ordered, order, dx, acc, count, width, ROWS=_ROWS, COLUMNS=columns, num_warps=4
        )
    return acc


@launched
@triton.jit
def _add_runs(
    ordered, order, dx, acc, count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0)
    token = tl.load(ordered + i)
    if token != tl.load(ordered + i - 1, mask=i > 0, other=-1):
        c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = c < width
        total = tl.load(dx + tl.load(order + i) * width + c, mask=inside, other=0.0).to(tl.float32)
        place = i + 1 + tl.arange(0, ROWS)
        own = tl.load(ordered + place, mask=place < count, other=-1) == token
        while tl.max(own.to(tl.int32), axis=0) > 0:
            at = tl.load(order + place, mask=own, other=0) * width
            more = own[:, None] & inside[None, :]
            rows = tl.load(dx + at[:, None] + c[None, :], mask=more, other=0.0)
            total += tl.sum(rows.to(tl.float32), axis=0)
            place += ROWS
            own = tl.load(ordered + place, mask=place < count, other=-1) == token
        out = acc + token * width + c
        tl.store(out, tl.load(out, mask=inside, other=0.0) + total, mask=inside)

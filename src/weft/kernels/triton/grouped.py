"""Weight gradients of the routed experts, added straight into their FP32 accumulators.

    acc[l] += du[rows of l].T @ x[rows of l]        acc [L, M, N], du [R, M], x [R, N]

One program a tile of one expert's accumulator: it walks the expert's rows and adds its tile where
it lies, so nothing of the size of the weights is made besides. The last, partial step of a walk
masks the rows of the next expert. An expert without rows is left as it is.

A tile is added some columns at a time: all of it would be held twice and spill.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A part of an accumulator, the rows of one step, warps, stages, who adds, and how many columns
    at a time: the copy engine, or the program itself.
    """

    m: int = 128
    n: int = 256
    rows: int = 64
    warps: int = 8
    stages: int = 4
    copy_engine: bool = True
    part: int = 128


# The copy engine's additions run at a quarter of the memory's rate. Long walks over rows hide most
# of that; short ones less than two programs a multiprocessor do that add what they read: measured
# at 1,024 and at 4,096 rows an expert (docs/log.md).
LONG, SHORT = Tile(), Tile(n=128, stages=3, copy_engine=False, part=32)
MANY_ROWS = 2048


def expert_wgrad(acc: Tensor, du: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """Adds each expert's weight gradient into `acc`.

    Shapes:
        acc [L, M, N], du [R, M], x [R, N], ends [L]

    Numerics:
        The tensor cores accumulate in FP32, rows in ascending order; one addition an element.
    """
    many = du.shape[0] >= MANY_ROWS * acc.shape[0]
    return expert_wgrad_tiled(acc, du, x, ends, LONG if many else SHORT)


def expert_wgrad_tiled(acc: Tensor, du: Tensor, x: Tensor, ends: Tensor, tile: Tile) -> Tensor:
    """Does the same with a tile of the caller's."""
    experts, m, n = acc.shape
    if du.shape[0] == 0:
        return acc
    tiles_m, tiles_n = triton.cdiv(m, tile.m), triton.cdiv(n, tile.n)
    _wgrad[tiles_m * tiles_n, experts](
        TensorDescriptor.from_tensor(du, [tile.rows, tile.m]),
        TensorDescriptor.from_tensor(x, [tile.rows, tile.n]),
        destination(acc, tile.m, tile.part, copy_engine=tile.copy_engine),
        ends, m, n, tiles_n, COPY_ENGINE=tile.copy_engine, PART=tile.part,
        TILE_M=tile.m, TILE_N=tile.n, STEP=tile.rows, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return acc


def destination(acc: Tensor, rows: int, part: int, *, copy_engine: bool) -> object:
    """Returns the accumulators as `add_tile` wants them."""
    return TensorDescriptor.from_tensor(acc, [1, rows, part]) if copy_engine else acc


@triton.jit
def _wgrad(
    du, x, acc, ends, m, n, tiles_n,
    COPY_ENGINE: tl.constexpr, PART: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(1)
    first = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    last = tl.load(ends + expert)
    if last > first:
        # neighbours share columns of `du`, of which there are more
        at_m = tl.program_id(0) // tiles_n * TILE_M
        at_n = tl.program_id(0) % tiles_n * TILE_N
        total = tl.zeros((TILE_M, TILE_N), tl.float32)
        whole = first + (last - first) // STEP * STEP
        for row in range(first, whole, STEP):
            total = tl.dot(du.load([row, at_m]).T, x.load([row, at_n]), total)
        if whole < last:
            own = (whole + tl.arange(0, STEP) < last)[:, None]
            left, right = du.load([whole, at_m]), x.load([whole, at_n])
            left = tl.where(own, left, tl.zeros_like(left))
            right = tl.where(own, right, tl.zeros_like(right))
            total = tl.dot(left.T, right, total)
        add_tile(total, acc, expert, at_m, at_n, m, n, COPY_ENGINE, PART, TILE_M, TILE_N)


@triton.jit
def add_tile(
    total, acc, expert, at_m, at_n, m, n,
    COPY_ENGINE: tl.constexpr, PART: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds a tile into the accumulator of an expert, `PART` columns at a time."""
    half: tl.constexpr = COLUMNS // 2
    if COLUMNS > PART:
        low, high = tl.split(tl.permute(tl.reshape(total, (ROWS, 2, half)), (0, 2, 1)))
        add_tile(low, acc, expert, at_m, at_n, m, n, COPY_ENGINE, PART, ROWS, half)
        add_tile(high, acc, expert, at_m, at_n + half, m, n, COPY_ENGINE, PART, ROWS, half)
    elif COPY_ENGINE:
        acc.atomic_add([expert, at_m, at_n], tl.reshape(total, (1, ROWS, COLUMNS)))
    else:
        i, j = at_m + tl.arange(0, ROWS), at_n + tl.arange(0, COLUMNS)
        inside = (i < m)[:, None] & (j < n)[None, :]
        out = acc + tl.cast(expert, tl.int64) * m * n + i[:, None] * n + j[None, :]
        tl.store(out, tl.load(out, mask=inside, other=0.0) + total, mask=inside)

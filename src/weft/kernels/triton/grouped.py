"""Weight gradients of the routed experts, straight into their FP32 accumulators.

    acc[l] += du[rows of l].T @ x[rows of l]        acc [L, M, N], du [R, M], x [R, N]
    acc[l]  =                                       the first of a step

One program a tile of one expert's accumulator: it walks the expert's rows and adds its tile where
it lies, or writes it there, so nothing of the size of the weights is made besides. The last,
partial step of a walk masks the rows of the next expert. An expert without rows is left as it is,
or written with zeros.

A tile is added or written some columns at a time: all of it would be held twice and spill.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from weft.kernels.grid import cdiv
from weft.kernels.launch import launched


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """What becomes of a tile: the kernel that adds or writes it, and accumulators without rows."""

    kernel: Any
    without_rows: Callable[[Tensor], Tensor]


def unchanged(acc: Tensor) -> Tensor:
    """Returns accumulators to which no row adds anything."""
    return acc


_HEIGHT = tl.constexpr(8)  # tiles: of 132 that run at a time a block is 8 x 16

# The copy engine's additions run at a quarter of the memory's rate. Long walks over rows hide most
# of that; short ones less than two programs a multiprocessor do that add what they read: measured
# at 1,024 and at 4,096 rows an expert (docs/log.md).
LONG, SHORT = Tile(), Tile(n=128, stages=3, copy_engine=False, part=32)
MANY_ROWS = 2048
# It writes at the memory's rate, no faster than a program that need not read (docs/log.md).
LONG_FIRST = Tile(copy_engine=False, part=32)
SHORT_FIRST = Tile(n=128, stages=3, copy_engine=False, part=32)


def expert_wgrad(acc: Tensor, du: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """Adds each expert's weight gradient into `acc`.

    Shapes:
        acc [L, M, N], du [R, M], x [R, N], ends [L]

    Numerics:
        The tensor cores accumulate in FP32, rows in ascending order; one addition an element.
    """
    tile = LONG if _has_many_rows(acc, du) else SHORT
    return expert_wgrad_tiled(acc, du, x, ends, tile)


def expert_wgrad_first(acc: Tensor, du: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """Writes each expert's weight gradient over `acc`, zeros for an expert without rows.

    Numerics:
        The bits of `expert_wgrad` into zeros.
    """
    tile = LONG_FIRST if _has_many_rows(acc, du) else SHORT_FIRST
    return expert_wgrad_first_tiled(acc, du, x, ends, tile)


def _has_many_rows(acc: Tensor, du: Tensor) -> bool:
    return du.shape[0] >= MANY_ROWS * acc.shape[0]


def expert_wgrad_tiled(acc: Tensor, du: Tensor, x: Tensor, ends: Tensor, tile: Tile) -> Tensor:
    """Adds with a tile of the caller's."""
    return _launch(ADDED, acc, du, x, ends, tile)


def expert_wgrad_first_tiled(
    acc: Tensor, du: Tensor, x: Tensor, ends: Tensor, tile: Tile
) -> Tensor:
    """Writes with a tile of the caller's."""
    return _launch(WRITTEN, acc, du, x, ends, tile)


def _launch(ending: Ending, acc: Tensor, du: Tensor, x: Tensor, ends: Tensor, tile: Tile) -> Tensor:
    experts, m, n = acc.shape
    if du.shape[0] == 0:
        return ending.without_rows(acc)
    tiles_m, tiles_n = cdiv(m, tile.m), cdiv(n, tile.n)
    ending.kernel[tiles_m * tiles_n, experts](
        TensorDescriptor.from_tensor(du, [tile.rows, tile.m]),
        TensorDescriptor.from_tensor(x, [tile.rows, tile.n]),
        destination(acc, tile.m, tile.part, copy_engine=tile.copy_engine),
        ends, m, n, tiles_m, tiles_n, COPY_ENGINE=tile.copy_engine, PART=tile.part,
        TILE_M=tile.m, TILE_N=tile.n, STEP=tile.rows, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return acc


def destination(acc: Tensor, rows: int, part: int, *, copy_engine: bool) -> object:
    """Returns the accumulators as `add_tile` and `write_tile` want them."""
    return TensorDescriptor.from_tensor(acc, [1, rows, part]) if copy_engine else acc


@launched
@triton.jit
def _wgrad(
    du, x, acc, ends, m, n, tiles_m, tiles_n,
    COPY_ENGINE: tl.constexpr, PART: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(1)
    first, last = rows_of(ends, expert)
    if last > first:
        at_m, at_n = tile_at(tiles_m, tiles_n, TILE_M, TILE_N)
        total = _product(du, x, first, last, at_m, at_n, TILE_M, TILE_N, STEP)
        add_tile(total, acc, expert, at_m, at_n, m, n, COPY_ENGINE, PART, TILE_M, TILE_N)


@launched
@triton.jit
def _wgrad_first(
    du, x, acc, ends, m, n, tiles_m, tiles_n,
    COPY_ENGINE: tl.constexpr, PART: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(1)
    first, last = rows_of(ends, expert)
    at_m, at_n = tile_at(tiles_m, tiles_n, TILE_M, TILE_N)
    total = _product(du, x, first, last, at_m, at_n, TILE_M, TILE_N, STEP)
    write_tile(total, acc, expert, at_m, at_n, m, n, COPY_ENGINE, PART, TILE_M, TILE_N)


@triton.jit
def rows_of(ends, expert):
    """Returns the first row of an expert and the one behind its last."""
    return tl.load(ends + expert - 1, mask=expert > 0, other=0), tl.load(ends + expert)


@triton.jit
def tile_at(tiles_m, tiles_n, TILE_M: tl.constexpr, TILE_N: tl.constexpr):
    """Returns where a program's tile lies: programs that run at a time make up a block of tiles,
    about as high as wide, so that they read few columns of either operand.
    """
    strip, within = tl.program_id(0) // (_HEIGHT * tiles_n), tl.program_id(0) % (_HEIGHT * tiles_n)
    height = tl.minimum(tiles_m - strip * _HEIGHT, _HEIGHT)
    return (strip * _HEIGHT + within % height) * TILE_M, within // height * TILE_N


@triton.jit
def _product(
    du, x, first, last, at_m, at_n,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Returns a tile of the gradient from an expert's rows, zeros where it has none."""
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
    return total


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


@triton.jit
def write_tile(
    total, acc, expert, at_m, at_n, m, n,
    COPY_ENGINE: tl.constexpr, PART: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Writes a tile over the accumulator of an expert, `PART` columns at a time."""
    half: tl.constexpr = COLUMNS // 2
    if COLUMNS > PART:
        low, high = tl.split(tl.permute(tl.reshape(total, (ROWS, 2, half)), (0, 2, 1)))
        write_tile(low, acc, expert, at_m, at_n, m, n, COPY_ENGINE, PART, ROWS, half)
        write_tile(high, acc, expert, at_m, at_n + half, m, n, COPY_ENGINE, PART, ROWS, half)
    elif COPY_ENGINE:
        acc.store([expert, at_m, at_n], tl.reshape(total, (1, ROWS, COLUMNS)))
    else:
        i, j = at_m + tl.arange(0, ROWS), at_n + tl.arange(0, COLUMNS)
        inside = (i < m)[:, None] & (j < n)[None, :]
        out = acc + tl.cast(expert, tl.int64) * m * n + i[:, None] * n + j[None, :]
        tl.store(out, total, mask=inside)


ADDED = Ending(kernel=_wgrad, without_rows=unchanged)
WRITTEN = Ending(kernel=_wgrad_first, without_rows=Tensor.zero_)

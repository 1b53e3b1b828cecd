"""Weight gradients of the experts from rows that are read where their tokens lie.

    acc[l] += du[rows of l].T @ h[order[rows of l] // k]        the up projection
    acc[l] += dz[order[rows of l] // k].T @ s[rows of l]        the down projection
    acc[l]  =                                                   the first of a step

As `triton.grouped`, but one of the two operands is gathered.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from weft.kernels.fused.tiles import Gather
from weft.kernels.grid import cdiv
from weft.kernels.launch import launched
from weft.kernels.triton.grouped import (
    Ending,
    add_tile,
    destination,
    rows_of,
    tile_at,
    unchanged,
    write_tile,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A part of an accumulator, the rows of one step, warps, stages, who adds or writes, and how
    many columns at a time: the copy engine, or the program itself.

    A stage brings either rows or the map that a later one reads them by.
    """

    m: int = 128
    n: int = 128
    rows: int = 64
    warps: int = 8
    stages: int = 5
    copy_engine: bool = True
    part: int = 64


DEFAULT = Tile()


def permute_up_wgrad(
    h: Tensor, order: Tensor, slot_row: Tensor, acc: Tensor, du: Tensor, ends: Tensor, *, top_k: int
) -> Tensor:
    """Adds the weight gradient of the up projection into `acc`.

    Shapes:
        h [T, D], order [R], acc [L, 2F, D], du [R, 2F], ends [L]

    Numerics:
        The tensor cores accumulate in FP32, rows in ascending order; one addition an element.
    """
    return right_tiled(ADDED, acc, du, h, Gather(order, top_k), ends, DEFAULT)


def permute_up_wgrad_first(
    h: Tensor, order: Tensor, slot_row: Tensor, acc: Tensor, du: Tensor, ends: Tensor, *, top_k: int
) -> Tensor:
    """Writes it over `acc`, zeros for an expert without rows."""
    return right_tiled(WRITTEN, acc, du, h, Gather(order, top_k), ends, DEFAULT)


def reorder_up_wgrad(
    arrived: Tensor, order: Tensor, inverse: Tensor, acc: Tensor, du: Tensor, ends: Tensor
) -> Tensor:
    """Adds the same from rows in another order."""
    return right_tiled(ADDED, acc, du, arrived, Gather(order, 1), ends, DEFAULT)


def reorder_up_wgrad_first(
    arrived: Tensor, order: Tensor, inverse: Tensor, acc: Tensor, du: Tensor, ends: Tensor
) -> Tensor:
    """Writes the same from rows in another order."""
    return right_tiled(WRITTEN, acc, du, arrived, Gather(order, 1), ends, DEFAULT)


def down_gather_wgrad(
    dz: Tensor, order: Tensor, acc: Tensor, s: Tensor, ends: Tensor, *, top_k: int
) -> Tensor:
    """Adds the weight gradient of the down projection into `acc`.

    Shapes:
        dz [T, D], order [R], acc [L, D, F], s [R, F], ends [L]
    """
    return left_tiled(ADDED, acc, dz, s, Gather(order, top_k), ends, DEFAULT)


def down_gather_wgrad_first(
    dz: Tensor, order: Tensor, acc: Tensor, s: Tensor, ends: Tensor, *, top_k: int
) -> Tensor:
    """Writes it over `acc`, zeros for an expert without rows."""
    return left_tiled(WRITTEN, acc, dz, s, Gather(order, top_k), ends, DEFAULT)


def down_reorder_wgrad(
    leaving: Tensor, inverse: Tensor, order: Tensor, acc: Tensor, s: Tensor, ends: Tensor
) -> Tensor:
    """Adds the same from gradients in another order."""
    return left_tiled(ADDED, acc, leaving, s, Gather(inverse, 1), ends, DEFAULT)


def down_reorder_wgrad_first(
    leaving: Tensor, inverse: Tensor, order: Tensor, acc: Tensor, s: Tensor, ends: Tensor
) -> Tensor:
    """Writes the same from gradients in another order."""
    return left_tiled(WRITTEN, acc, leaving, s, Gather(inverse, 1), ends, DEFAULT)


def left_tiled(
    ending: Ending, acc: Tensor, left: Tensor, right: Tensor, gather: Gather, ends: Tensor,
    tile: Tile,
) -> Tensor:  # fmt: skip
    """Does it with a tile of the caller's, the left operand gathered."""
    return _launch(ending, acc, right, tile.n, left, gather, ends, tile, gathers_left=True)


def right_tiled(
    ending: Ending, acc: Tensor, left: Tensor, right: Tensor, gather: Gather, ends: Tensor,
    tile: Tile,
) -> Tensor:  # fmt: skip
    """Does it with a tile of the caller's, the right operand gathered."""
    return _launch(ending, acc, left, tile.m, right, gather, ends, tile, gathers_left=False)


def _launch(
    ending: Ending, acc: Tensor, lies: Tensor, columns: int, moves: Tensor, gather: Gather,
    ends: Tensor, tile: Tile, *, gathers_left: bool,
) -> Tensor:  # fmt: skip
    experts, m, n = acc.shape
    if gather.order.shape[0] == 0:
        return ending.without_rows(acc)
    tiles_m, tiles_n = cdiv(m, tile.m), cdiv(n, tile.n)
    ending.kernel[tiles_m * tiles_n, experts](
        TensorDescriptor.from_tensor(lies.contiguous(), [tile.rows, columns]),
        moves.contiguous(), gather.order,
        destination(acc, tile.m, tile.part, copy_engine=tile.copy_engine),
        ends, m, n, tiles_m, tiles_n, DIVISOR=gather.divisor, GATHERS_LEFT=gathers_left,
        COPY_ENGINE=tile.copy_engine, PART=tile.part,
        TILE_M=tile.m, TILE_N=tile.n, STEP=tile.rows, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return acc


@launched
@triton.jit(do_not_specialize=["tiles_m", "tiles_n"])
def _wgrad_gathered(
    lies, moves, order, acc, ends, m, n, tiles_m, tiles_n,
    DIVISOR: tl.constexpr, GATHERS_LEFT: tl.constexpr, COPY_ENGINE: tl.constexpr,
    PART: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(1)
    first, last = rows_of(ends, expert)
    if last > first:
        at_m, at_n = tile_at(tiles_m, tiles_n, TILE_M, TILE_N)
        total = _product(
            lies, moves, order, first, last, at_m, at_n, m, n,
            DIVISOR, GATHERS_LEFT, TILE_M, TILE_N, STEP,
        )  # fmt: skip
        add_tile(total, acc, expert, at_m, at_n, m, n, COPY_ENGINE, PART, TILE_M, TILE_N)


@launched
@triton.jit(do_not_specialize=["tiles_m", "tiles_n"])
def _wgrad_gathered_first(
    lies, moves, order, acc, ends, m, n, tiles_m, tiles_n,
    DIVISOR: tl.constexpr, GATHERS_LEFT: tl.constexpr, COPY_ENGINE: tl.constexpr,
    PART: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(1)
    first, last = rows_of(ends, expert)
    at_m, at_n = tile_at(tiles_m, tiles_n, TILE_M, TILE_N)
    total = _product(
        lies, moves, order, first, last, at_m, at_n, m, n,
        DIVISOR, GATHERS_LEFT, TILE_M, TILE_N, STEP,
    )  # fmt: skip
    write_tile(total, acc, expert, at_m, at_n, m, n, COPY_ENGINE, PART, TILE_M, TILE_N)


@triton.jit
def _product(
    lies, moves, order, first, last, at_m, at_n, m, n,
    DIVISOR: tl.constexpr, GATHERS_LEFT: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Returns a tile of the gradient from an expert's rows, zeros where it has none."""
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    if GATHERS_LEFT:
        width, at_lies, at_moves = m, at_n, at_m
        c = at_moves + tl.arange(0, TILE_M)
    else:
        width, at_lies, at_moves = n, at_m, at_n
        c = at_moves + tl.arange(0, TILE_N)
    i = tl.arange(0, STEP)
    whole = first + (last - first) // STEP * STEP
    for row in range(first, whole, STEP):
        token = tl.load(order + row + i) // DIVISOR
        x = tl.load(
            moves + token[:, None] * width + c[None, :], mask=(c < width)[None, :], other=0.0
        )
        y = lies.load([row, at_lies])
        if GATHERS_LEFT:
            total = tl.dot(x.T, y, total)
        else:
            total = tl.dot(y.T, x, total)
    if whole < last:
        own = whole + i < last
        token = tl.load(order + whole + i, mask=own, other=0) // DIVISOR
        inside = own[:, None] & (c < width)[None, :]
        x = tl.load(moves + token[:, None] * width + c[None, :], mask=inside, other=0.0)
        y = lies.load([whole, at_lies])
        y = tl.where(own[:, None], y, tl.zeros_like(y))
        if GATHERS_LEFT:
            total = tl.dot(x.T, y, total)
        else:
            total = tl.dot(y.T, x, total)
    return total


ADDED = Ending(kernel=_wgrad_gathered, without_rows=unchanged)
WRITTEN = Ending(kernel=_wgrad_gathered_first, without_rows=Tensor.zero_)

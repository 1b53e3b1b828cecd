"""Rows times the up projection of their experts, and SwiGLU with the weight of a row.

    rows[i] = h[order[i] // k]     u = rows @ w[expert].T = [g | u]     s = silu(g) u weight

A program holds the same columns of the gate half and of the up half, so that what SwiGLU reads is
in its registers. Rows are read where their tokens lie, and nothing of their size is
written; where they lie by expert already, the copy engine brings them.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from weft.kernels.fused.tiles import Gather, Tile, operand, place, row_tiles
from weft.kernels.grid import cdiv
from weft.kernels.launch import launched

DEFAULT = Tile(columns=128)  # of each half


def permute_up_swiglu(
    h: Tensor, order: Tensor, slot_row: Tensor, w: Tensor, ends: Tensor, row_weights: Tensor,
    *, top_k: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the pre-activations and the weighted activations of each row.

    Shapes:
        h [T, D], order [R], w [L, 2F, D], ends [L], row_weights [R] -> u [R, 2F], s [R, F]

    Numerics:
        Products accumulate in FP32; SwiGLU is that of the rounded `u`, as its backward sees it.
    """
    return up_tiled(h, Gather(order, top_k), w, ends, row_weights, DEFAULT)


def reorder_up_swiglu(
    arrived: Tensor, order: Tensor, inverse: Tensor, w: Tensor, ends: Tensor, row_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the same of rows in another order."""
    return up_tiled(arrived, Gather(order, 1), w, ends, row_weights, DEFAULT)


def up_swiglu(rows: Tensor, w: Tensor, ends: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the same of rows that lie by expert."""
    return up_tiled(rows, None, w, ends, row_weights, DEFAULT)


def up_tiled(
    x: Tensor, gather: Gather | None, w: Tensor, ends: Tensor, row_weights: Tensor, tile: Tile
) -> tuple[Tensor, Tensor]:
    """Does the same with a tile of the caller's."""
    experts, both, width = w.shape
    rows, ffn = row_weights.shape[0], both // 2
    u, s = x.new_empty(rows, both), x.new_empty(rows, ffn)
    if rows == 0:
        return u, s
    columns = cdiv(ffn, tile.columns)
    table = row_tiles(ends, rows, tile.rows)
    groups = cdiv(table.shape[0], tile.group)
    source, order, divisor = operand(x, gather, [tile.rows, tile.depth])
    halves = w.view(2 * experts, ffn, width)
    _up_swiglu[groups * tile.group * columns,](
        source, order,
        TensorDescriptor.from_tensor(halves, [2, tile.columns, tile.depth]),
        table, row_weights, u, s, table.shape[0], width, ffn, columns,
        DIVISOR=divisor, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, GROUP=tile.group,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return u, s


@launched
@triton.jit(do_not_specialize=["tiles", "columns"])
def _up_swiglu(
    x, order, w, table, row_weights, u, s, tiles, width, ffn, columns,
    DIVISOR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    tile, column = place(columns, GROUP)
    if tile < tiles:
        expert = tl.load(table + tile * 3)
        first, last = tl.load(table + tile * 3 + 1), tl.load(table + tile * 3 + 2)
        if last > first:
            row = first + tl.arange(0, ROWS)
            at = column * COLUMNS
            total = tl.zeros((ROWS, 2 * COLUMNS), tl.float32)
            if order is None:
                for start in range(0, width, DEPTH):
                    both = w.load([2 * expert, at, start]).reshape(2 * COLUMNS, DEPTH)
                    total = tl.dot(x.load([first, start]), both.T, total)
            else:
                k = tl.arange(0, DEPTH)
                token = tl.load(order + tl.minimum(row, last - 1)) // DIVISOR
                source = x + token[:, None] * width + k[None, :]
                for start in range(0, width, DEPTH):
                    taken = tl.load(source + start, mask=(k < width - start)[None, :], other=0.0)
                    both = w.load([2 * expert, at, start]).reshape(2 * COLUMNS, DEPTH)
                    total = tl.dot(taken, both.T, total)
            gate, up = tl.split(tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS)), (0, 2, 1)))
            c = at + tl.arange(0, COLUMNS)
            inside = (row < last)[:, None] & (c < ffn)[None, :]
            weight = tl.load(row_weights + row, mask=row < last, other=0.0).to(tl.float32)
            gate = gate.to(u.dtype.element_ty)
            up = up.to(u.dtype.element_ty)
            out = u + row.to(tl.int64)[:, None] * (2 * ffn) + c[None, :]
            tl.store(out, gate, mask=inside)
            tl.store(out + ffn, up, mask=inside)
            g = gate.to(tl.float32)
            made = g * tl.sigmoid(g) * up.to(tl.float32) * weight[:, None]
            tl.store(s + row.to(tl.int64)[:, None] * ffn + c[None, :], made, mask=inside)

"""Gradients through the down projection and SwiGLU, which is computed again from `u`.

    dd[i] = dz[order[i] // k]      ds = dd @ w[expert]
    du = [ds weight u silu'(g) | ds weight silu(g)]     s = silu(g) u weight
    dweight = rowsum(ds silu(g) u)

A program has some columns of its rows, so it leaves a part of the last sum; the parts of a row are
added in order of their columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from weft.kernels.fused.tiles import Gather, Tile, operand, place, row_tiles
from weft.kernels.grid import cdiv
from weft.kernels.launch import launched

DEFAULT = Tile(columns=256)


def swiglu_down_gather_dgrad(
    dz: Tensor, order: Tensor, w: Tensor, ends: Tensor, u: Tensor, row_weights: Tensor,
    *, top_k: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the gradients of the pre-activations and of the rows' weights, and the weighted
    activations.

    Shapes:
        dz [T, D], order [R], w [L, D, F], ends [L], u [R, 2F], row_weights [R] -> du [R, 2F],
        drow_weights [R], s [R, F]

    Numerics:
        FP32 from the product to the results, each rounded once.
    """
    return down_tiled(dz, Gather(order, top_k), w, ends, u, row_weights, DEFAULT)


def swiglu_down_reorder_dgrad(
    leaving: Tensor, inverse: Tensor, order: Tensor, w: Tensor, ends: Tensor, u: Tensor,
    row_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the same from gradients in another order."""
    return down_tiled(leaving, Gather(inverse, 1), w, ends, u, row_weights, DEFAULT)


def swiglu_down_dgrad(
    dd: Tensor, w: Tensor, ends: Tensor, u: Tensor, row_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the same from gradients that lie by expert."""
    return down_tiled(dd, None, w, ends, u, row_weights, DEFAULT)


def down_tiled(
    x: Tensor, gather: Gather | None, w: Tensor, ends: Tensor, u: Tensor, row_weights: Tensor,
    tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Does the same with a tile of the caller's."""
    width, ffn = w.shape[1:]
    rows = u.shape[0]
    du, s = torch.empty_like(u), u.new_empty(rows, ffn)
    columns = cdiv(ffn, tile.columns)
    parts = torch.empty(rows, columns, dtype=torch.float32, device=u.device)
    if rows:
        source, order, divisor = operand(x, gather, [tile.rows, tile.depth])
        table = row_tiles(ends, rows, tile.rows)
        groups = cdiv(table.shape[0], tile.group)
        _down_swiglu_dgrad[groups * tile.group * columns,](
            source, order,
            TensorDescriptor.from_tensor(w, [1, tile.depth, tile.columns]),
            table, u, row_weights, du, s, parts, table.shape[0], width, ffn, columns,
            DIVISOR=divisor, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth,
            GROUP=tile.group, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return du, parts.sum(1), s


@launched
@triton.jit(do_not_specialize=["tiles", "columns"])
def _down_swiglu_dgrad(
    x, order, w, table, u, row_weights, du, s, parts, tiles, width, ffn, columns,
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
            ds = tl.zeros((ROWS, COLUMNS), tl.float32)
            if order is None:
                for start in range(0, width, DEPTH):
                    y = w.load([expert, start, at]).reshape(DEPTH, COLUMNS)
                    ds = tl.dot(x.load([first, start]), y, ds)
            else:
                k = tl.arange(0, DEPTH)
                token = tl.load(order + tl.minimum(row, last - 1)) // DIVISOR
                source = x + token[:, None] * width + k[None, :]
                for start in range(0, width, DEPTH):
                    taken = tl.load(source + start, mask=(k < width - start)[None, :], other=0.0)
                    y = w.load([expert, start, at]).reshape(DEPTH, COLUMNS)
                    ds = tl.dot(taken, y, ds)
            weight = tl.load(row_weights + row, mask=row < last, other=0.0).to(tl.float32)
            part = tl.zeros((ROWS,), tl.float32)
            low, high = _halves(ds, ROWS, COLUMNS)
            half: tl.constexpr = COLUMNS // 2
            part = _finish(low, u, du, s, part, weight, row, last, at, ffn, ROWS, half)
            part = _finish(high, u, du, s, part, weight, row, last, at + half, ffn, ROWS, half)
            tl.store(parts + row.to(tl.int64) * columns + column, part, mask=row < last)


@triton.jit
def _halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _finish(
    ds, u, du, s, part, weight, row, last, at, ffn, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Some columns at a time, so that what they need fits into registers."""
    if COLUMNS > 32:
        low, high = _halves(ds, ROWS, COLUMNS)
        half: tl.constexpr = COLUMNS // 2
        part = _finish(low, u, du, s, part, weight, row, last, at, ffn, ROWS, half)
        part = _finish(high, u, du, s, part, weight, row, last, at + half, ffn, ROWS, half)
    else:
        c = at + tl.arange(0, COLUMNS)
        wide = row.to(tl.int64)[:, None]
        inside = (row < last)[:, None] & (c < ffn)[None, :]
        both = wide * (2 * ffn) + c[None, :]
        gate = tl.load(u + both, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(u + both + ffn, mask=inside, other=0.0).to(tl.float32)
        share = tl.sigmoid(gate)
        made = gate * share * up
        part += tl.sum(ds * made, axis=1)
        tl.store(s + wide * ffn + c[None, :], made * weight[:, None], mask=inside)
        ds *= weight[:, None]
        tl.store(du + both, ds * up * share * (1 + gate * (1 - share)), mask=inside)
        tl.store(du + both + ffn, ds * gate * share, mask=inside)
    return part

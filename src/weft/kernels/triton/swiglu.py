"""SwiGLU in one pass over its operands, with the weight of a routed row and without.

    s = silu(g) u weight                    u = [g | u], R x 2F
    du = [ds weight u silu'(g) | ds weight silu(g)]
    dweight = rowsum(ds silu(g) u)

A program of the backward owns whole rows, so the sum along F runs in one order. Routed rows have an
end: there may be room for more, which is neither read nor written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.grid import cdiv
from weft.kernels.launch import launched

_ROWS, _COLUMNS = 4, 512  # 16 elements a thread: two loads of 16 bytes each operand


def swiglu(u: Tensor, row_weights: Tensor, ends: Tensor) -> Tensor:
    """Returns `silu(gate) * up * weight of the row`.

    Shapes:
        u [R, 2F] = [gate | up], row_weights [R], ends [L] -> s [R, F]

    Numerics:
        FP32 inside, rounded once.
    """
    return _forward(u, row_weights, ends)


def swiglu_dgrad(ds: Tensor, u: Tensor, row_weights: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the pre-activations and of the rows' weights."""
    dweight = torch.empty_like(row_weights)
    return _backward(ds, u, row_weights, dweight, ends), dweight


def dense_swiglu(u: Tensor) -> Tensor:
    """Returns `silu(gate) * up`."""
    return _forward(u, None, None)


def dense_swiglu_dgrad(ds: Tensor, u: Tensor) -> Tensor:
    """Returns the gradient of the pre-activations."""
    return _backward(ds, u, None, None, None)


def _forward(u: Tensor, weights: Tensor | None, ends: Tensor | None) -> Tensor:
    u = u.contiguous()
    rows, width = u.shape[0], u.shape[1] // 2
    s = u.new_empty(rows, width)
    if rows:
        grid = (cdiv(rows, _ROWS), cdiv(width, _COLUMNS))
        _swiglu[grid](
            u, weights, s, ends, _experts(ends), rows, width,
            WEIGHTED=weights is not None, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
        )  # fmt: skip
    return s


def _backward(
    ds: Tensor,
    u: Tensor,
    weights: Tensor | None,
    dweights: Tensor | None,
    ends: Tensor | None,
) -> Tensor:
    ds, u = ds.contiguous(), u.contiguous()
    rows, width = ds.shape
    du = torch.empty_like(u)
    if rows:
        _swiglu_dgrad[cdiv(rows, _ROWS),](
            ds, u, weights, du, dweights, ends, _experts(ends), rows, width,
            WEIGHTED=weights is not None, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
        )  # fmt: skip
    return du


def _experts(ends: Tensor | None) -> int:
    return 0 if ends is None else ends.shape[0]


@launched
@triton.jit
def _swiglu(
    u, weights, s, ends, experts, rows, width,
    WEIGHTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    if WEIGHTED:
        rows = tl.load(ends + experts - 1)
    if tl.program_id(0) * ROWS >= rows:
        return
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < width)[None, :]
    at = r.to(tl.int64)[:, None] * (2 * width) + c[None, :]
    gate = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(u + at + width, mask=inside, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    if WEIGHTED:
        out *= tl.load(weights + r, mask=r < rows, other=0.0)[:, None]
    tl.store(s + r.to(tl.int64)[:, None] * width + c[None, :], out, mask=inside)


@launched
@triton.jit
def _swiglu_dgrad(
    ds, u, weights, du, dweights, ends, experts, rows, width,
    WEIGHTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    if WEIGHTED:
        rows = tl.load(ends + experts - 1)
    if tl.program_id(0) * ROWS >= rows:
        return
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    wide = r.to(tl.int64)[:, None]
    total = tl.zeros((ROWS,), tl.float32)
    weight = tl.full((ROWS,), 1.0, tl.float32)
    if WEIGHTED:
        weight = tl.load(weights + r, mask=r < rows, other=0.0).to(tl.float32)
    for start in range(0, width, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        inside = (r < rows)[:, None] & (c < width)[None, :]
        at = wide * (2 * width) + c[None, :]
        gate = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(u + at + width, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(ds + wide * width + c[None, :], mask=inside, other=0.0).to(tl.float32)
        share = tl.sigmoid(gate)
        silu = gate * share
        if WEIGHTED:
            total += tl.sum(grad * silu * up, axis=1)
        grad *= weight[:, None]
        tl.store(du + at, grad * up * share * (1 + gate * (1 - share)), mask=inside)
        tl.store(du + at + width, grad * silu, mask=inside)
    if WEIGHTED:
        tl.store(dweights + r, total, mask=r < rows)

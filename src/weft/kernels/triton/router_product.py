"""Gradients of the router's product, that of the logits in FP32 and all else in half precision.

    dh = dlogits w              dlogits [T, E], w [E, D]
    dw = dlogits.T h            h [T, D]

Matrix units take both operands narrow, so `dlogits` goes in as the sum of two narrow numbers. It is
split in registers as it is read, and both halves meet the other operand while that is there.

The sum over tokens is made in parts, since the weight alone has few tiles; then the parts are
added, in order. How many there are depends on the sizes alone.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.grid import cdiv, next_power_of_2
from weft.kernels.launch import launched
from weft.kernels.triton.norm import add_partial_sums
from weft.ops.bias import add_bias_wgrad
from weft.ops.linear import router_logits_dgrad_narrow


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Tokens and channels of a step, programs that share the work, warps and stages."""

    rows: int
    columns: int
    programs: int
    warps: int
    stages: int


# one program a multiprocessor of an H200: tiles so large that its L2 cache is read little
INPUT = Tile(rows=128, columns=128, programs=132, warps=8, stages=3)
WEIGHT = Tile(rows=64, columns=256, programs=132, warps=8, stages=3)
_FEWEST, _MOST = 16, 128  # experts of a product: what the matrix units take, and a tile of them
_HEIGHT = 64  # rows of a warp group's product
_HELD = 512  # experts whose logits' gradients a program holds split: 128 KB at that height, ...
_BESIDE = 2  # ... and so many steps of the weight beside them


def router_logits_dgrad(dlogits: Tensor, w: Tensor) -> Tensor:
    """Returns the gradient of the router's input, in the dtype of its weight.

    Shapes:
        dlogits [T, E], w [E, D] -> dh [T, D]

    Numerics:
        The gradient of the logits goes in as the sum of two narrow numbers: 16 binary digits where
        these are bfloat16. FP32 inside, rounded once.
    """
    if w.shape[0] > _HELD:
        return router_logits_dgrad_narrow(dlogits, w)
    return router_logits_dgrad_tiled(dlogits, w, INPUT)


def router_logits_wgrad(acc: Tensor, dlogits: Tensor, h: Tensor) -> Tensor:
    """Adds the gradient of the router's weight into `acc`.

    Shapes:
        acc [E, D], dlogits [T, E], h [T, D]

    Numerics:
        `dlogits` as in `router_logits_dgrad`. FP32 sums over parts of the tokens, in ascending
        order within a part; the parts are added in one order.
    """
    return router_logits_wgrad_tiled(acc, dlogits, h, WEIGHT)


def biased_router_logits_wgrad(
    w_acc: Tensor, b_acc: Tensor, dlogits: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of weight and bias into their accumulators."""
    return router_logits_wgrad(w_acc, dlogits, h), add_bias_wgrad(b_acc, dlogits)


def router_logits_dgrad_tiled(dlogits: Tensor, w: Tensor, tile: Tile) -> Tensor:
    """Returns what `router_logits_dgrad` returns, with a tile of the caller's."""
    dlogits, w = dlogits.contiguous(), w.contiguous()
    (tokens, experts), width = dlogits.shape, w.shape[1]
    dh = w.new_empty(tokens, width)
    if tokens == 0:
        return dh
    block = max(next_power_of_2(experts), _FEWEST)
    wider = max(block // _MOST, 1)  # all experts are in one product: of fewer tokens and channels
    rows, columns = max(tile.rows // wider, _HEIGHT), max(tile.columns // wider, _FEWEST)
    down = cdiv(tokens, rows)
    share = _share(width, max(tile.programs // down, 1), columns)
    stages = tile.stages if block < _HELD else min(tile.stages, _BESIDE)
    _dgrad[down, cdiv(width, share)](
        dlogits, w, dh, tokens, experts, width, share,
        ROWS=rows, COLUMNS=columns, EXPERTS=block, num_warps=tile.warps, num_stages=stages,
    )  # fmt: skip
    return dh


def router_logits_wgrad_tiled(acc: Tensor, dlogits: Tensor, h: Tensor, tile: Tile) -> Tensor:
    """Adds what `router_logits_wgrad` adds, with a tile of the caller's."""
    dlogits, h = dlogits.contiguous(), h.contiguous()
    (tokens, experts), width = dlogits.shape, h.shape[1]
    if tokens == 0:
        return acc
    block = min(max(next_power_of_2(experts), _FEWEST), _MOST)
    across, down = cdiv(width, tile.columns), cdiv(experts, block)
    share = _share(tokens, max(tile.programs // (across * down), 1), tile.rows)
    parts = cdiv(tokens, share)
    partial = torch.empty(parts, experts * width, dtype=torch.float32, device=h.device)
    _wgrad[across, down, parts](
        dlogits, h, partial, tokens, experts, width, share,
        STEP=tile.rows, COLUMNS=tile.columns, EXPERTS=block,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    add_partial_sums(acc.view(-1), partial)
    return acc


def _share(length: int, parts: int, step: int) -> int:
    """Whole steps of which about `parts` make up a length."""
    return cdiv(cdiv(length, step), parts) * step


@launched
@triton.jit
def _dgrad(
    dlogits, w, dh, tokens, experts, width, share,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    r, e = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, EXPERTS)
    wide, present = r.to(tl.int64)[:, None], (r < tokens)[:, None]
    inside = present & (e < experts)[None, :]
    value = tl.load(dlogits + wide * experts + e[None, :], mask=inside, other=0.0)
    high, low = _split(value, w.dtype.element_ty)
    first = tl.program_id(1) * share
    for start in range(first, tl.minimum(first + share, width), COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        of_weight = (e < experts)[:, None] & (c < width)[None, :]
        other = tl.load(w + e[:, None] * width + c[None, :], mask=of_weight, other=0.0)
        total = tl.dot(low, other, tl.dot(high, other))
        tl.store(dh + wide * width + c[None, :], total, mask=present & (c < width)[None, :])


@launched
@triton.jit
def _wgrad(
    dlogits, h, partial, tokens, experts, width, share,
    STEP: tl.constexpr, COLUMNS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(2)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    e = tl.program_id(1) * EXPERTS + tl.arange(0, EXPERTS)
    total = tl.zeros((COLUMNS, EXPERTS), tl.float32)
    first = part * share
    last = tl.minimum(first + share, tokens)
    for start in range(first, last, STEP):
        t = start + tl.arange(0, STEP)
        wide, present = t.to(tl.int64)[:, None], (t < last)[:, None]
        inside = present & (e < experts)[None, :]
        value = tl.load(dlogits + wide * experts + e[None, :], mask=inside, other=0.0)
        high, low = _split(value, h.dtype.element_ty)
        inside = present & (c < width)[None, :]
        other = tl.load(h + wide * width + c[None, :], mask=inside, other=0.0).T
        total = tl.dot(other, low, tl.dot(other, high, total))
    out = partial + (part * experts + e).to(tl.int64)[None, :] * width + c[:, None]
    tl.store(out, total, mask=(e < experts)[None, :] & (c < width)[:, None])


@triton.jit
def _split(x, narrow):
    """Returns two narrow numbers whose sum is x, but for what is lost of the second."""
    high = x.to(narrow)
    return high, (x - high.to(x.dtype)).to(narrow)

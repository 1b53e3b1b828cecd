"""Row movement by a map: one program a row and a block of columns, sums in slot order.

rows[i] = h[order[i] // k]          z[t] = sum_j rows[slot_row[t, j]], absent slots skipped
"""

import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.grid import cdiv, next_power_of_2
from weft.kernels.launch import launched

_COLUMNS = 2048  # 16 elements for each of 128 threads
_NUMBERS = 512  # 4 for each of 128 threads: 131,072 choices are 256 programs


def permute(h: Tensor, order: Tensor, slot_row: Tensor, *, top_k: int) -> Tensor:
    """Returns each row's token."""
    return _take(h, order, top_k)


def permute_dgrad(drows: Tensor, slot_row: Tensor, *, top_k: int) -> Tensor:
    """Returns each token's sum over its rows' gradients."""
    return _sum_slots(drows, slot_row)


def permute_weights(weights: Tensor, order: Tensor, slot_row: Tensor, *, top_k: int) -> Tensor:
    """Returns the gate weight of each row."""
    out = weights.new_empty(order.shape)
    if len(order):
        _take_numbers[cdiv(len(order), _NUMBERS),](
            weights.contiguous(), order, out, len(order), BLOCK=_NUMBERS, num_warps=4
        )
    return out


def permute_weights_dgrad(drow_weights: Tensor, slot_row: Tensor, *, top_k: int) -> Tensor:
    """Returns the gradient of each choice's weight; 0 where its row is not on this rank."""
    out = drow_weights.new_empty(slot_row.shape)
    if slot_row.numel():
        _take_numbers[cdiv(slot_row.numel(), _NUMBERS),](
            drow_weights.contiguous(), slot_row, out, slot_row.numel(), BLOCK=_NUMBERS, num_warps=4
        )
    return out


def reorder(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Returns the rows in another order."""
    return _take(rows, order, 1)


def reorder_dgrad(dout: Tensor, inverse: Tensor, order: Tensor) -> Tensor:
    """Returns the gradients in the first order."""
    return _take(dout, inverse, 1)


def gather_sum(rows: Tensor, slot_row: Tensor, order: Tensor, *, top_k: int) -> Tensor:
    """Returns each token's sum over its rows.

    Numerics:
        FP32 in slot order, rounded once; an absent slot is skipped.
    """
    return _sum_slots(rows, slot_row)


def gather_sum_dgrad(dz: Tensor, order: Tensor, *, top_k: int) -> Tensor:
    """Returns each row's copy of its token's gradient."""
    return _take(dz, order, top_k)


def _take(source: Tensor, order: Tensor, divisor: int) -> Tensor:
    source = source.contiguous()
    count, width = order.shape[0], source.shape[1]
    out = source.new_empty(count, width)
    if count:
        block = _block(width)
        _take_rows[count, cdiv(width, block)](
            source, order, out, width,
            DIVISOR=divisor, COLUMNS=block, num_warps=4,
        )  # fmt: skip
    return out


def _sum_slots(rows: Tensor, slot_row: Tensor) -> Tensor:
    rows = rows.contiguous()
    tokens, slots = slot_row.shape
    width = rows.shape[1]
    out = rows.new_empty(tokens, width)
    if tokens:
        block = _block(width)
        _sum_rows[tokens, cdiv(width, block)](
            rows, slot_row, out, width, SLOTS=slots, COLUMNS=block, num_warps=4
        )
    return out


def _block(width: int) -> int:
    return min(next_power_of_2(width), _COLUMNS)


@launched
@triton.jit
def _take_rows(
    source, order, out, width, DIVISOR: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = tl.load(order + row) // DIVISOR
    values = tl.load(source + at * width + c, mask=c < width)
    tl.store(out + row * width + c, values, mask=c < width)


@launched
@triton.jit
def _take_numbers(source, order, out, count, BLOCK: tl.constexpr):
    """One number for each place of the map; 0 where it says -1."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(order + i, mask=i < count, other=-1)
    tl.store(out + i, tl.load(source + at, mask=at >= 0, other=0.0), mask=i < count)


@launched
@triton.jit
def _sum_rows(rows, slot_row, out, width, SLOTS: tl.constexpr, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for j in tl.static_range(SLOTS):
        row = tl.load(slot_row + token * SLOTS + j)
        bound = tl.where(row >= 0, width, 0)
        total += tl.load(rows + row * width + c, mask=c < bound, other=0.0).to(tl.float32)
    tl.store(out + token * width + c, total, mask=c < width)

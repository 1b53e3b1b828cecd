"""The map between choices and rows by a counting sort: a few launches, no atomics.

Choices are cut into parts of `_PART`. Each part counts its choices an expert; one program sums what
lies before it, in order of expert and then of part, which says where its first row of each expert
lies; then it places its choices one after another. So rows lie by expert and within an expert by
choice, whatever runs first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PART, _STEP = 1024, 64  # choices of a program, and of one step: 64 x 128 cells for 128 experts
_CELLS = 8192  # counts that the one program which sums them holds at a time


def count_load(chosen: Tensor, *, experts: int, first: int, stretch: int, rows: int) -> Tensor:
    """Returns how many choices of each sequence of the micro-batch fell on each expert.

    Shapes:
        chosen [T, k] -> load [rows, experts]
    """
    top_k = chosen.shape[1]
    parts = triton.cdiv(stretch * top_k, _PART)
    partial = torch.empty(rows, parts, experts, dtype=torch.int32, device=chosen.device)
    _count[rows, parts](
        chosen, partial, chosen.numel(), 0, experts, first * top_k, stretch * top_k,
        PART=_PART, STEP=_STEP, COLUMNS=triton.next_power_of_2(experts), num_warps=4,
    )  # fmt: skip
    return partial.sum(1, dtype=torch.int64)


def count_local(chosen: Tensor, *, first: int, local: int) -> Tensor:
    """Returns how many choices fell on each of the experts [first, first + local)."""
    return _counts(chosen, first, local).sum(0, dtype=torch.int64)


def plan_rows(chosen: Tensor, *, experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the map of all choices sorted by expert: order, slot_row, counts and ends."""
    order = torch.empty(chosen.numel(), dtype=torch.int64, device=chosen.device)
    slot_row, counts, ends, _ = _place_all(chosen, order, 0, experts)
    return order, slot_row, counts, ends


def plan_local(
    chosen: Tensor, rows: int, *, first: int, local: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the map of the choices on this rank's experts: order, slot_row and ends."""
    order = torch.empty(rows, dtype=torch.int64, device=chosen.device)
    slot_row, _, ends, _ = _place_all(chosen, order, first, local)
    return order, slot_row, ends


def plan_within(
    chosen: Tensor, *, rows: int, first: int, local: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the same map where there is room for so many rows, and how many choices found none.

    `order` is filled up with the first choice.
    """
    order = torch.zeros(rows, dtype=torch.int64, device=chosen.device)
    slot_row, _, ends, overflow = _place_all(chosen, order, first, local)
    return order, slot_row, ends, overflow


def _place_all(
    chosen: Tensor, order: Tensor, first: int, experts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Writes each row's choice as far as there is room: slot_row, counts, ends and overflow."""
    device, parts = chosen.device, triton.cdiv(chosen.numel(), _PART)
    partial = _counts(chosen, first, experts)
    start, slot_row = torch.empty_like(partial), torch.empty_like(chosen)
    counts = torch.empty(experts, dtype=torch.int64, device=device)
    ends = torch.empty(experts, dtype=torch.int32, device=device)
    overflow = torch.empty(1, dtype=torch.int64, device=device)
    rows, columns = order.shape[0], triton.next_power_of_2(experts)
    _start[1,](
        partial, start, counts, ends, overflow, parts, experts, rows,
        PARTS=max(_CELLS // columns, 1), COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    if parts:
        _place[parts,](
            chosen, start, order, slot_row, chosen.numel(), rows, first, experts,
            PART=_PART, STEP=_STEP, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
    return slot_row, counts, ends, overflow


def _counts(chosen: Tensor, first: int, experts: int) -> Tensor:
    """The choices of each part on each of the experts from `first` on [parts, experts]."""
    parts = triton.cdiv(chosen.numel(), _PART)
    partial = torch.empty(parts, experts, dtype=torch.int32, device=chosen.device)
    if parts:
        _count[1, parts](
            chosen, partial, chosen.numel(), first, experts, 0, chosen.numel(),
            PART=_PART, STEP=_STEP, COLUMNS=triton.next_power_of_2(experts), num_warps=4,
        )  # fmt: skip
    return partial


@triton.jit
def _count(
    chosen, partial, choices, first, experts, offset, length,
    PART: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Counts a part of the stretch of choices that belongs to one row: length long, and the first
    begins `offset` before this rank's choices.
    """
    row, part = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.int32)
    begin = row * length - offset
    for start in range(0, PART, STEP):
        into = part * PART + start + tl.arange(0, STEP)
        at = begin + into
        inside = (into < length) & (at >= 0) & (at < choices)
        expert = tl.load(chosen + at, mask=inside, other=-1).to(tl.int32) - first
        total += tl.sum((inside[:, None] & (expert[:, None] == c[None, :])).to(tl.int32), axis=0)
    out = (row * tl.num_programs(1) + part) * experts
    tl.store(partial + out + c, total, mask=c < experts)


@triton.jit
def _start(
    partial, start, counts, ends, overflow, parts, experts, rows,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums counts [parts, experts]: what lies before each, the rows of each expert, and those
    without room.
    """
    c = tl.arange(0, COLUMNS)
    inside = c < experts
    total = tl.zeros((COLUMNS,), tl.int32)
    for begin in range(0, parts, PARTS):
        p = begin + tl.arange(0, PARTS)
        at = p[:, None] * experts + c[None, :]
        total += tl.sum(
            tl.load(partial + at, mask=(p < parts)[:, None] & inside[None, :], other=0), 0
        )
    through = tl.cumsum(total, axis=0)
    tl.store(counts + c, total.to(tl.int64), mask=inside)
    tl.store(ends + c, tl.minimum(through, rows), mask=inside)
    tl.store(overflow, tl.maximum(tl.sum(total, axis=0) - rows, 0).to(tl.int64))
    row = through - total
    for begin in range(0, parts, PARTS):
        p = begin + tl.arange(0, PARTS)
        at = p[:, None] * experts + c[None, :]
        own = (p < parts)[:, None] & inside[None, :]
        here = tl.load(partial + at, mask=own, other=0)
        tl.store(start + at, row[None, :] + tl.cumsum(here, axis=0) - here, mask=own)
        row += tl.sum(here, axis=0)


@triton.jit
def _place(
    chosen, start, order, slot_row, choices, rows, first, experts,
    PART: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    c = tl.arange(0, COLUMNS)
    row = tl.load(start + part * experts + c, mask=c < experts, other=0).to(tl.int32)
    for begin in range(0, PART, STEP):
        at = part * PART + begin + tl.arange(0, STEP)
        inside = at < choices
        expert = tl.load(chosen + at, mask=inside, other=-1).to(tl.int32) - first
        local = inside & (expert >= 0) & (expert < experts)
        here = ((expert[:, None] == c[None, :]) & local[:, None]).to(tl.int32)
        before = tl.cumsum(here, axis=0) - 1 + row[None, :]
        place = tl.sum(before * here, axis=1)
        held = local & (place < rows)
        tl.store(order + place, at.to(tl.int64), mask=held)
        tl.store(slot_row + at, tl.where(held, place, -1).to(tl.int64), mask=inside)
        row += tl.sum(here, axis=0)

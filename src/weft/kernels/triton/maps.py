"""The map between choices and rows by a counting sort: two launches.

Choices are cut into parts. Each part counts its choices an expert; then every part sums what lies
before it, in order of expert and then of part, which says where its first row of each expert lies,
and places its choices one step after another. So rows lie by expert and within an expert by choice,
whatever runs first.

Counts are whole numbers: those of a load are added in any order and give the same.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.grid import cdiv, next_power_of_2
from weft.kernels.launch import launched

_STEP = 128  # choices placed at once, one a thread: each is compared with all of them
_PARTS = 128  # parts at most: one for each of an H200's 132 multiprocessors
_COUNTED = 1024  # choices counted at once, 8 a thread
_CELLS = 8192  # counts of parts that are read at once, 64 a thread


def count_load(chosen: Tensor, *, experts: int, first: int, stretch: int, rows: int) -> Tensor:
    """Returns how many choices of each sequence of the micro-batch fell on each expert.

    Shapes:
        chosen [T, k] -> load [rows, experts]
    """
    top_k = chosen.shape[1]
    load = torch.zeros(rows, experts, dtype=torch.int64, device=chosen.device)
    _add_counts[rows, cdiv(stretch * top_k, _COUNTED)](
        chosen, load, chosen.numel(), 0, experts, first * top_k, stretch * top_k,
        STEP=_COUNTED, COLUMNS=_columns(experts), num_warps=4,
    )  # fmt: skip
    return load


def count_local(chosen: Tensor, *, first: int, local: int) -> Tensor:
    """Returns how many choices fell on each of the experts [first, first + local)."""
    load, choices = torch.zeros(local, dtype=torch.int64, device=chosen.device), chosen.numel()
    if choices:
        _add_counts[1, cdiv(choices, _COUNTED)](
            chosen, load, choices, first, local, 0, choices,
            STEP=_COUNTED, COLUMNS=_columns(local), num_warps=4,
        )  # fmt: skip
    return load


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
    order = torch.empty(rows, dtype=torch.int64, device=chosen.device)
    slot_row, _, ends, overflow = _place_all(chosen, order, first, local)
    return order, slot_row, ends, overflow


def _place_all(
    chosen: Tensor, order: Tensor, first: int, experts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Writes each row's choice as far as there is room: slot_row, counts, ends and overflow."""
    device, choices, rows = chosen.device, chosen.numel(), order.shape[0]
    columns = _columns(experts)
    size = _STEP * cdiv(cdiv(choices, _STEP), _PARTS)  # choices of a part
    parts = cdiv(choices, size) if choices else 0
    partial = torch.empty(parts, experts, dtype=torch.int32, device=device)
    slot_row = torch.empty_like(chosen)
    counts = torch.empty(experts, dtype=torch.int64, device=device)
    ends = torch.empty(experts, dtype=torch.int32, device=device)
    overflow = torch.empty(1, dtype=torch.int64, device=device)
    if parts:
        _count[parts,](
            chosen, partial, choices, size, first, experts,
            STEP=_COUNTED, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
    _place[max(parts, 1),](
        chosen, partial, order, slot_row, counts, ends, overflow,
        choices, size, parts, rows, first, experts,
        PARTS=max(_CELLS // columns, 1), STEP=_STEP, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return slot_row, counts, ends, overflow


def _columns(experts: int) -> int:
    """The bins of a histogram: one or more for each thread of a warp."""
    return max(next_power_of_2(experts), 32)  # 32 threads


@triton.jit
def _local_expert(chosen, at, inside, first, experts):
    """The number of each choice's expert among those from `first` on, or -1."""
    expert = tl.load(chosen + at, mask=inside, other=-1).to(tl.int32) - first
    return tl.where(inside & (expert >= 0) & (expert < experts), expert, -1)


@launched
@triton.jit
def _add_counts(
    chosen, load, choices, first, experts, offset, length,
    STEP: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds a part of the stretch of choices that belongs to one row: length long, and the first
    begins `offset` before this rank's choices.
    """
    row = tl.program_id(0)
    into = tl.program_id(1) * STEP + tl.arange(0, STEP)
    at = row * length - offset + into
    inside = (into < length) & (at >= 0) & (at < choices)
    expert = _local_expert(chosen, at, inside, first, experts)
    here = tl.histogram(expert, COLUMNS, mask=expert >= 0)
    c = tl.arange(0, COLUMNS)
    own = (c < experts) & (here > 0)
    tl.atomic_add(load + row * experts + c, here.to(tl.int64), mask=own, sem="relaxed")


@launched
@triton.jit
def _count(
    chosen, partial, choices, size, first, experts, STEP: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Counts the choices of a part on each expert."""
    part = tl.program_id(0)
    c = tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.int32)
    for begin in range(0, size, STEP):
        into = begin + tl.arange(0, STEP)
        at = part * size + into
        expert = _local_expert(chosen, at, (into < size) & (at < choices), first, experts)
        total += tl.histogram(expert, COLUMNS, mask=expert >= 0)
    tl.store(partial + part * experts + c, total, mask=c < experts)


@launched
@triton.jit
def _place(
    chosen, partial, order, slot_row, counts, ends, overflow,
    choices, size, parts, rows, first, experts,
    PARTS: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Places the choices of a part behind those of the parts before; rows left over get the first
    choice, and the first part writes what is one for all.
    """
    part = tl.program_id(0)
    i = tl.arange(0, STEP)
    at = part * size + i
    ahead = _local_expert(chosen, at, at < choices, first, experts)
    c = tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.int32)
    before = tl.zeros((COLUMNS,), tl.int32)
    for begin in range(0, parts, PARTS):
        p = begin + tl.arange(0, PARTS)[:, None]
        here = tl.load(
            partial + p * experts + c[None, :], mask=(p < parts) & (c < experts)[None, :], other=0
        )
        total += tl.sum(here, axis=0)
        before += tl.sum(tl.where(p < part, here, 0), axis=0)
    through = tl.cumsum(total, axis=0)
    found = tl.sum(total, axis=0)
    if part == 0:
        tl.store(counts + c, total.to(tl.int64), mask=c < experts)
        tl.store(ends + c, tl.minimum(through, rows), mask=c < experts)
        tl.store(overflow, tl.maximum(found - rows, 0).to(tl.int64))
    for begin in range(found + part * STEP, rows, tl.num_programs(0) * STEP):
        tl.store(order + begin + i, tl.zeros((STEP,), tl.int64), mask=begin + i < rows)
    row = through - total + before
    for begin in range(0, size, STEP):
        at = part * size + begin + i
        expert = ahead
        ahead = _local_expert(chosen, at + STEP, at + STEP < choices, first, experts)  # in time
        local = expert >= 0
        key = expert * STEP + i  # an earlier choice of the same expert is 1 to i below
        earlier = (key[None, :] - 1 - key[:, None]).to(tl.uint32, bitcast=True) < i[None, :]
        place = tl.gather(row, tl.maximum(expert, 0), 0) + tl.sum(earlier.to(tl.int32), axis=0)
        held = local & (place < rows)
        tl.store(order + place, at.to(tl.int64), mask=held)
        tl.store(slot_row + at, tl.where(held, place, -1).to(tl.int64), mask=at < choices)
        row += tl.histogram(expert, COLUMNS, mask=local)

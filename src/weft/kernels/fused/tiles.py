"""Tiles of ragged groups of rows: which rows of which expert a program works on.

    tile   0        1        2        3              expert 0 has 200 rows, expert 1 none,
    rows   0..128   128..200 200..328 328..330       expert 2 has 130; tiles of 128 rows

No group is padded: a group's last tile holds what is left. How many tiles there are is known on the
device alone, so a launch has one program for each there could be, and those beyond have no rows.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from weft.kernels.grid import cdiv, next_power_of_2
from weft.kernels.launch import launched


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Rows and columns of a program, the depth of a step, row tiles of a group, warps, stages."""

    columns: int
    rows: int = 128
    depth: int = 64
    group: int = 16
    warps: int = 8
    stages: int = 4


@dataclass(frozen=True, slots=True)
class Gather:
    """Row i is row `order[i] // divisor` of what it is read from."""

    order: Tensor
    divisor: int


def operand(
    x: Tensor, gather: Gather | None, block: list[int]
) -> tuple[Tensor | TensorDescriptor, Tensor | None, int]:
    """Returns what a kernel reads rows from: a tensor, a map and its divisor, or, where rows lie in
    order, blocks of them and no map.
    """
    if gather is None:
        return TensorDescriptor.from_tensor(x.contiguous(), block), None, 1
    return x.contiguous(), gather.order, gather.divisor


def most_tiles(rows: int, experts: int, size: int) -> int:
    """Returns the most tiles that so many rows of so many experts can take."""
    return rows // size + min(experts, rows)


def row_tiles(ends: Tensor, rows: int, size: int) -> Tensor:
    """Returns each tile's expert, first row, and the row behind its last one.

    Shapes:
        ends [L] -> table [most_tiles, 3]; a tile that is not there has no rows
    """
    experts = ends.shape[0]
    count = most_tiles(rows, experts, size)
    table = torch.empty(count, 3, dtype=torch.int32, device=ends.device)
    columns = next_power_of_2(experts)
    _tabulate[cdiv(count, _TILES),](
        ends, table, experts, count, SIZE=size, TILES=_TILES, COLUMNS=columns, num_warps=4
    )
    return table


_TILES = 64  # of a program: 64 x 128 cells for 128 experts


@launched
@triton.jit
def _tabulate(
    ends, table, experts, count, SIZE: tl.constexpr, TILES: tl.constexpr, COLUMNS: tl.constexpr
):
    e = tl.arange(0, COLUMNS)
    last = tl.load(ends + e, mask=e < experts, other=0)
    first = tl.load(ends + e - 1, mask=(e > 0) & (e < experts), other=0)
    taken = tl.where(e < experts, (last - first + SIZE - 1) // SIZE, 0)
    through = tl.cumsum(taken, axis=0)
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    before = (through - taken)[None, :]
    own = ((tile[:, None] >= before) & (tile[:, None] < through[None, :])).to(tl.int32)
    start = first[None, :] + (tile[:, None] - before) * SIZE
    expert = tl.sum(own * e[None, :], axis=1)
    begin = tl.sum(own * start, axis=1)
    stop = tl.sum(own * tl.minimum(start + SIZE, last[None, :]), axis=1)
    inside = tile < count
    tl.store(table + tile * 3, expert, mask=inside)
    tl.store(table + tile * 3 + 1, begin, mask=inside)
    tl.store(table + tile * 3 + 2, stop, mask=inside)


@triton.jit
def place(columns, GROUP: tl.constexpr):
    """Returns the row tile and the column tile of a program: tiles of `GROUP` rows go through the
    columns together, so that neighbours share a weight.
    """
    within = tl.program_id(0) % (GROUP * columns)
    return tl.program_id(0) // (GROUP * columns) * GROUP + within % GROUP, within // GROUP

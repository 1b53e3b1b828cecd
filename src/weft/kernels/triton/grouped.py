"""Weight gradients of the routed experts, added straight into their FP32 accumulators.

    acc[l] += du[rows of l].T @ x[rows of l]        acc [L, M, N], du [R, M], x [R, N]

A tile of one expert's accumulator is one walk over the expert's rows and one addition, so nothing
of the size of the weights is made besides. An expert without rows is left as it is. How tiles are
walked:

    plain       one program a tile; the tile is read, added to, written
    added       the copy engine adds the tile where it lies, one addition an element
    persistent  as many programs as multiprocessors, each with tiles of its own: the additions of
                one tile run under the products of the next; the rows of an expert are a slice that
                the copy engine bounds, where the others mask the last step
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.ragged_tma import create_ragged_descriptor, load_ragged
from triton.tools.tensor_descriptor import TensorDescriptor


class Walk(StrEnum):
    """How the tiles of all experts are walked."""

    PLAIN = "plain"
    ADDED = "added"
    PERSISTENT = "persistent"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A part of an accumulator, the rows of one step, warps, stages, and the pieces of a sum."""

    m: int = 128
    n: int = 256
    rows: int = 64
    warps: int = 8
    stages: int = 4
    pieces: int = 2
    walk: Walk = Walk.ADDED


DEFAULT = Tile()


def expert_wgrad(acc: Tensor, du: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """Adds each expert's weight gradient into `acc`.

    Shapes:
        acc [L, M, N], du [R, M], x [R, N], ends [L]

    Numerics:
        The tensor cores accumulate in FP32, rows in ascending order; one addition an element.
    """
    return expert_wgrad_tiled(acc, du, x, ends, DEFAULT)


def expert_wgrad_tiled(acc: Tensor, du: Tensor, x: Tensor, ends: Tensor, tile: Tile) -> Tensor:
    """Does the same with a tile of the caller's."""
    if du.shape[0] == 0:
        return acc
    if tile.walk is Walk.PERSISTENT:
        _launch_persistent(acc, du, x, ends, tile)
    else:
        _launch(acc, du, x, ends, tile)
    return acc


def _launch(acc: Tensor, du: Tensor, x: Tensor, ends: Tensor, tile: Tile) -> None:
    experts, m, n = acc.shape
    tiles_m, tiles_n = triton.cdiv(m, tile.m), triton.cdiv(n, tile.n)
    added = tile.walk is Walk.ADDED
    _wgrad[tiles_m * tiles_n, experts](
        TensorDescriptor.from_tensor(du, [tile.rows, tile.m]),
        TensorDescriptor.from_tensor(x, [tile.rows, tile.n]),
        _pieces(acc, tile) if added else acc, ends, m, n, tiles_n,
        ADDED=added, PIECES=tile.pieces, TILE_M=tile.m, TILE_N=tile.n, STEP=tile.rows,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _launch_persistent(acc: Tensor, du: Tensor, x: Tensor, ends: Tensor, tile: Tile) -> None:
    experts, m, n = acc.shape
    tiles_m, tiles_n = triton.cdiv(m, tile.m), triton.cdiv(n, tile.n)
    programs = torch.cuda.get_device_properties(acc.device).multi_processor_count
    _wgrad_persistent[programs,](
        create_ragged_descriptor(du, [tile.rows, tile.m]),
        create_ragged_descriptor(x, [tile.rows, tile.n]),
        _pieces(acc, tile), ends, tiles_n, tiles_m * tiles_n, tiles_m * tiles_n * experts,
        PROGRAMS=programs, PIECES=tile.pieces, TILE_M=tile.m, TILE_N=tile.n, STEP=tile.rows,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _pieces(acc: Tensor, tile: Tile) -> TensorDescriptor:
    """The accumulators as the copy engine adds to them: some columns of a tile at a time."""
    return TensorDescriptor.from_tensor(acc, [1, tile.m, tile.n // tile.pieces])


@triton.jit
def _wgrad(
    du, x, acc, ends, m, n, tiles_n,
    ADDED: tl.constexpr, PIECES: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(1)
    first = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    last = tl.load(ends + expert)
    if last > first:
        # neighbours share columns of `du`, of which there are more
        at_m = tl.program_id(0) // tiles_n * TILE_M
        at_n = tl.program_id(0) % tiles_n * TILE_N
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
        if ADDED:
            _add(acc, expert, at_m, at_n, total, PIECES)
        else:
            i, j = at_m + tl.arange(0, TILE_M), at_n + tl.arange(0, TILE_N)
            inside = (i < m)[:, None] & (j < n)[None, :]
            out = acc + tl.cast(expert, tl.int64) * m * n + i[:, None] * n + j[None, :]
            tl.store(out, tl.load(out, mask=inside, other=0.0) + total, mask=inside)


@triton.jit
def _wgrad_persistent(
    du, x, acc, ends, tiles_n, tiles, total_tiles,
    PROGRAMS: tl.constexpr, PIECES: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    for tile in tl.range(tl.program_id(0), total_tiles, PROGRAMS, flatten=True):
        expert = tile // tiles
        first = tl.load(ends + expert - 1, mask=expert > 0, other=0)
        count = tl.load(ends + expert) - first
        at_m, at_n = tile % tiles // tiles_n * TILE_M, tile % tiles_n * TILE_N
        total = tl.zeros((TILE_M, TILE_N), tl.float32)
        for step in range(0, tl.cdiv(count, STEP)):  # noqa: PIE808 - so that Triton knows the type
            left = load_ragged(du, first, count, [step * STEP, at_m])
            right = load_ragged(x, first, count, [step * STEP, at_n])
            total = tl.dot(left.T, right, total)
        _add(acc, expert, at_m, at_n, total, PIECES)


@triton.jit
def _add(acc, expert, at_m, at_n, total, PIECES: tl.constexpr):
    """Adds a tile to an accumulator, a half or a quarter of its columns at a time."""
    M: tl.constexpr = total.shape[0]
    N: tl.constexpr = total.shape[1] // 2
    low, high = tl.split(tl.permute(tl.reshape(total, (M, 2, N)), (0, 2, 1)))
    if PIECES == 2:
        acc.atomic_add([expert, at_m, at_n], tl.reshape(low, (1, M, N)))
        acc.atomic_add([expert, at_m, at_n + N], tl.reshape(high, (1, M, N)))
    else:
        _add(acc, expert, at_m, at_n, low, PIECES // 2)
        _add(acc, expert, at_m, at_n + N, high, PIECES // 2)

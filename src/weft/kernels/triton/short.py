"""Short collectives in one kernel: what is sent, flagged, awaited and taken out, chunk by chunk.

    program p    chunk p of every block -> the slots of the others
                 raise flag p at the others        released to the system
                 await flag p of the others        acquired from the system, so often at most
                 chunk p of their slots -> out, copied or added in rank order

`weft.comm.short` has the protocol and says why no program has to wait for another one of its own
member.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.comm.short import LINE, Board, Bodies, chunk_bytes

_BLOCK, _WARPS = 4096, 8  # of words of 4 bytes four times 16 bytes a thread
_LINE = tl.constexpr(LINE)
_FLAGS_THERE, _SLOTS_THERE, _FLAGS_HERE, _SLOTS_HERE = (tl.constexpr(row) for row in range(4))


def exchange(board: Board, epoch: int, x: Tensor, out: Tensor, stride: int) -> None:
    """Copies blocks to the other members and theirs, and the own one, to `out`."""
    moved = stride * x.element_size()
    wide = _widest(x, out, out.numel() // board.size * out.element_size())
    x, out = x.view(wide), out.view(wide)
    size = out.numel() // board.size
    _launch(_exchange, board, epoch, x, out, size, moved // wide.itemsize)


def add(board: Board, epoch: int, x: Tensor, out: Tensor, stride: int) -> None:
    """Copies blocks to the other members and adds theirs and the own one.

    Numerics: in rank order in FP32 (wider numbers and integers in their own dtype), rounded once.
    """
    _launch(_add, board, epoch, x, out, out.numel(), stride)


BODIES = Bodies(exchange=exchange, add=add)


def _launch(
    kernel: triton.JITFunction,
    board: Board,
    epoch: int,
    x: Tensor,
    out: Tensor,
    size: int,
    stride: int,
) -> None:
    width = x.element_size()
    chunk = chunk_bytes(size * width) // width
    kernel[(max(triton.cdiv(size, chunk), 1),)](
        x,
        out,
        board.table,
        board.failed,
        epoch,
        board.spins,
        board.position,
        board.slot_bytes,
        size,
        stride,
        chunk,
        SIZE=board.size,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


def _widest(x: Tensor, out: Tensor, size: int) -> torch.dtype:
    """Words of 4 bytes, where tensors and blocks begin on such."""
    odd = (x.data_ptr() | out.data_ptr() | size) % 4
    return torch.uint8 if odd else torch.int32


@triton.jit(do_not_specialize=["epoch", "spins", "position"])
def _exchange(
    x,
    out,
    table,
    failed,
    epoch,
    spins,
    position,
    slot_bytes,
    size,
    stride,
    chunk,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, size)
    half = (epoch & 1) * slot_bytes
    _push(x, table, epoch, position, half, first, last, stride, SIZE, BLOCK)
    _copy(x + position * stride, out + position * size, first, last, BLOCK)
    for way in tl.static_range(1, SIZE):
        peer = (position + way) % SIZE
        _await(table, failed, peer, epoch, spins, SIZE)
        here = _slot(table, _SLOTS_HERE, peer, half, SIZE, out.dtype)
        _copy(here, out + peer * size, first, last, BLOCK)


@triton.jit(do_not_specialize=["epoch", "spins", "position"])
def _add(
    x,
    out,
    table,
    failed,
    epoch,
    spins,
    position,
    slot_bytes,
    size,
    stride,
    chunk,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, size)
    half = (epoch & 1) * slot_bytes
    _push(x, table, epoch, position, half, first, last, stride, SIZE, BLOCK)
    for way in tl.static_range(1, SIZE):
        _await(table, failed, (position + way) % SIZE, epoch, spins, SIZE)
    own = x + position * stride
    for at in range(first, last, BLOCK):
        places = at + tl.arange(0, BLOCK)
        inside = places < last
        total = _term(x, own, table, 0, position, half, places, inside, SIZE)
        for rank in tl.static_range(1, SIZE):
            total += _term(x, own, table, rank, position, half, places, inside, SIZE)
        tl.store(out + places, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _term(x, own, table, rank, position, half, places, inside, SIZE: tl.constexpr):
    """What a member brings: where its chunk lies here, or the own one."""
    slot = _slot(table, _SLOTS_HERE, rank, half, SIZE, x.dtype)
    term = tl.load(tl.where(rank == position, own, slot) + places, mask=inside)
    narrow: tl.constexpr = x.dtype.element_ty.primitive_bitwidth < 32 and (
        x.dtype.element_ty.is_floating()
    )
    return term.to(tl.float32) if narrow else term


@triton.jit
def _push(
    x, table, epoch, position, half, first, last, stride, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """Copies a chunk to every other member and raises its flags there."""
    for way in tl.static_range(1, SIZE):
        peer = (position + way) % SIZE
        there = _slot(table, _SLOTS_THERE, peer, half, SIZE, x.dtype)
        _copy(x + peer * stride, there, first, last, BLOCK)
    tl.debug_barrier()  # a flag is one thread's, what it tells of is everybody's
    for way in tl.static_range(1, SIZE):
        flag = _flag(table, _FLAGS_THERE, (position + way) % SIZE, SIZE)
        tl.atomic_xchg(flag, epoch, sem="release", scope="sys")


@triton.jit
def _await(table, failed, peer, epoch, spins, SIZE: tl.constexpr):
    """Looks at a flag until it is there, or often enough; epochs wrap."""
    flag = _flag(table, _FLAGS_HERE, peer, SIZE)
    missing = epoch - tl.atomic_add(flag, 0, sem="acquire", scope="sys")
    looks = 0
    while (missing > 0) & (looks < spins):
        missing = epoch - tl.atomic_add(flag, 0, sem="acquire", scope="sys")
        looks += 1
    tl.store(failed, peer + 1, mask=missing > 0)
    tl.store(failed + 1, epoch, mask=missing > 0)
    tl.debug_barrier()  # what one thread has acquired is everybody's


@triton.jit
def _copy(source, target, first, last, BLOCK: tl.constexpr):
    for at in range(first, last, BLOCK):
        places = at + tl.arange(0, BLOCK)
        inside = places < last
        tl.store(target + places, tl.load(source + places, mask=inside), mask=inside)


@triton.jit
def _slot(table, row: tl.constexpr, peer, half, SIZE: tl.constexpr, kind: tl.constexpr):
    """Where a slot begins: on a line, which lets a thread move 16 bytes at once."""
    address = tl.load(table + row * SIZE + peer) + half
    return tl.multiple_of(address.to(kind), 16)


@triton.jit
def _flag(table, row: tl.constexpr, peer, SIZE: tl.constexpr):
    address = tl.load(table + row * SIZE + peer) + tl.program_id(0) * _LINE
    return address.to(tl.pointer_type(tl.int32))

"""Collectives in one kernel: what is sent, flagged, awaited and taken out, chunk by chunk.

    program (0, p)   chunk of every block -> the slots of the others, once these are empty
                     raise its FULL flag at the others      released to the system
    program (1, p)   await the FULL flag p of the others    so often at most
                     chunk of their slots -> out, copied or added in rank order
                     raise its LANDED flag at the others    where they wait for it

One of a pair pushes while the other one takes out, so that the wire does not rest meanwhile; they
lie side by side in a launch, as a device begins them.

`weft.comm.kernel` has the protocol and says why no pair has to wait for another one of its own
member.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import KernelInterface

from weft.comm.kernel import LINE, REGISTERS, WARPS, Board, Bodies, Turn, signed
from weft.kernels.launch import launched

_BLOCK = 4096  # of words of 4 bytes four times 16 bytes a thread
_BOTH = range(2)  # pushes, takes out
_LINE = tl.constexpr(LINE)
_FLAGS_THERE, _SLOTS_THERE, _FLAGS_HERE, _SLOTS_HERE = (tl.constexpr(row) for row in range(4))


def exchange(board: Board, turn: Turn, x: Tensor, out: Tensor, stride: int) -> None:
    """Copies blocks to the other members and theirs, and the own one, to `out`."""
    moved = stride * x.element_size()
    wide = _widest(x, out, out.numel() // board.size * out.element_size())
    x, out = x.view(wide), out.view(wide)
    size = out.numel() // board.size
    _launch(_exchange, board, turn, x, out, size, moved // wide.itemsize, wide)


def add(board: Board, turn: Turn, x: Tensor, out: Tensor, stride: int, wire: torch.dtype) -> None:
    """Copies blocks to the other members and adds theirs and the own one.

    Numerics: every term rounded once to `wire`; added in rank order in FP32 (wider numbers and
    integers in their own dtype), rounded once.
    """
    _launch(_add, board, turn, x, out, out.numel(), stride, wire)


BODIES = Bodies(exchange=exchange, add=add)


def _launch(
    kernel: KernelInterface,
    board: Board,
    turn: Turn,
    x: Tensor,
    out: Tensor,
    size: int,
    stride: int,
    wire: torch.dtype,
    roles: range = _BOTH,
) -> None:
    width = wire.itemsize
    way = board.walk(size * width)
    kernel[len(roles), way.pairs](
        x, out, board.table, board.failed, signed(turn.epoch), signed(turn.epoch + way.steps),
        board.spins, board.position, turn.slots * board.slot_bytes, size, stride,
        way.chunk // width, way.chunks, roles.start, SIZE=board.size, RING=board.shape.ring,
        PAIRS=board.shape.pairs, WIRE=getattr(tl, str(wire).removeprefix("torch.")),
        BLOCK=_BLOCK, num_warps=WARPS, maxnreg=REGISTERS,
    )  # fmt: skip


def _widest(x: Tensor, out: Tensor, size: int) -> torch.dtype:
    """Words of 4 bytes, where tensors and blocks begin on such."""
    odd = (x.data_ptr() | out.data_ptr() | size) % 4
    return torch.uint8 if odd else torch.int32


_EVERY = ["epoch", "last", "spins", "position", "chunks", "role"]  # one kernel for all of them


@launched
@triton.jit(do_not_specialize=_EVERY)
def _exchange(
    x, out, table, failed, epoch, last, spins, position, half, size, stride, chunk, chunks, role,
    SIZE: tl.constexpr, RING: tl.constexpr, PAIRS: tl.constexpr, WIRE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    if role + tl.program_id(0) == 0:
        _push_all(
            x, table, failed, epoch, last, spins, position, half, size, stride, chunk, chunks,
            SIZE, RING, PAIRS, WIRE, BLOCK,
        )  # fmt: skip
    else:
        steps = _steps(chunks)
        for step in range(steps):
            first, count = _chunk(step, size, chunk)
            own = x + _far(position, stride) + first
            _copy(own, out + _far(position, size) + first, count, BLOCK)
            for way in tl.static_range(1, SIZE):
                peer = (position + way) % SIZE
                spins = _await(table, failed, peer, epoch + step + 1, last, spins, 0, SIZE)
                here = _slot(table, _SLOTS_HERE, peer, half, step, chunk, SIZE, RING, WIRE)
                _copy(here, out + _far(peer, size) + first, count, BLOCK)
            _landed(table, epoch, position, step, steps, SIZE, RING, PAIRS)


@launched
@triton.jit(do_not_specialize=_EVERY)
def _add(
    x, out, table, failed, epoch, last, spins, position, half, size, stride, chunk, chunks, role,
    SIZE: tl.constexpr, RING: tl.constexpr, PAIRS: tl.constexpr, WIRE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    if role + tl.program_id(0) == 0:
        _push_all(
            x, table, failed, epoch, last, spins, position, half, size, stride, chunk, chunks,
            SIZE, RING, PAIRS, WIRE, BLOCK,
        )  # fmt: skip
    else:
        steps = _steps(chunks)
        for step in range(steps):
            first, count = _chunk(step, size, chunk)
            for way in tl.static_range(1, SIZE):
                peer = (position + way) % SIZE
                spins = _await(table, failed, peer, epoch + step + 1, last, spins, 0, SIZE)
            own = x + _far(position, stride) + first
            for at in range(0, count, BLOCK):
                places = at + tl.arange(0, BLOCK)
                inside = places < count
                total = _term(
                    own, table, 0, position, half, step, chunk, places, inside, SIZE, RING, WIRE
                )
                for rank in tl.static_range(1, SIZE):
                    total += _term(
                        own, table, rank, position, half, step, chunk, places, inside,
                        SIZE, RING, WIRE,
                    )  # fmt: skip
                tl.store(out + first + places, total.to(out.dtype.element_ty), mask=inside)
            _landed(table, epoch, position, step, steps, SIZE, RING, PAIRS)


@triton.jit
def _term(
    own, table, rank, position, half, step, chunk, places, inside,
    SIZE: tl.constexpr, RING: tl.constexpr, WIRE: tl.constexpr,
):  # fmt: skip
    """What a member brings: where its chunk lies here, or the own one."""
    slot = _slot(table, _SLOTS_HERE, rank, half, step, chunk, SIZE, RING, WIRE)
    if rank == position:
        term = tl.load(own + places, mask=inside).to(WIRE)
    else:
        term = tl.load(slot + places, mask=inside)
    narrow: tl.constexpr = WIRE.primitive_bitwidth < 32 and WIRE.is_floating()
    return term.to(tl.float32) if narrow else term


@triton.jit
def _push_all(
    x, table, failed, epoch, last, spins, position, half, size, stride, chunk, chunks,
    SIZE: tl.constexpr, RING: tl.constexpr, PAIRS: tl.constexpr, WIRE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Copies each chunk to every other member, once its slot is empty, and says so."""
    for step in range(_steps(chunks)):
        first, count = _chunk(step, size, chunk)
        for way in tl.static_range(1, SIZE):
            peer = (position + way) % SIZE
            if step >= RING:
                emptied = epoch + step - RING + 1
                spins = _await(table, failed, peer, emptied, last, spins, PAIRS, SIZE)
            there = _slot(table, _SLOTS_THERE, peer, half, step, chunk, SIZE, RING, WIRE)
            _copy(x + _far(peer, stride) + first, there, count, BLOCK)
        _raise(table, position, epoch + step + 1, 0, SIZE)


@triton.jit
def _landed(
    table, epoch, position, step, steps,
    SIZE: tl.constexpr, RING: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Tells the others that a slot is empty, where a later step of theirs takes it."""
    if step + RING < steps:
        _raise(table, position, epoch + step + 1, PAIRS, SIZE)


@triton.jit
def _raise(table, position, epoch, kind, SIZE: tl.constexpr):
    """Raises flags at every other member."""
    tl.debug_barrier()  # a flag is one thread's, what it tells of is everybody's
    for way in tl.static_range(1, SIZE):
        flag = _flag(table, _FLAGS_THERE, (position + way) % SIZE, kind, SIZE)
        tl.atomic_xchg(flag, epoch, sem="release", scope="sys")


@triton.jit
def _await(table, failed, peer, epoch, last, spins, kind, SIZE: tl.constexpr):
    """Looks at a flag until it is there, or often enough; epochs wrap. Returns how often the next
    one is looked at: who has not come is not waited for twice.
    """
    flag = _flag(table, _FLAGS_HERE, peer, kind, SIZE)
    missing = epoch - tl.atomic_add(flag, 0, sem="acquire", scope="sys")
    looks = 0
    while (missing > 0) & (looks < spins):
        missing = epoch - tl.atomic_add(flag, 0, sem="acquire", scope="sys")
        looks += 1
    tl.store(failed, peer + 1, mask=missing > 0)
    tl.store(failed + 1, last, mask=missing > 0)
    tl.debug_barrier()  # what one thread has acquired is everybody's
    return tl.where(missing > 0, 0, spins)


@triton.jit
def _steps(chunks):
    """The chunks of this pair: each of as many in turn as there are pairs."""
    return tl.cdiv(chunks - tl.program_id(1), tl.num_programs(1))


@triton.jit
def _chunk(step, size, chunk):
    """Returns where a chunk of this pair begins in a block, and its elements."""
    first = tl.cast(step * tl.num_programs(1) + tl.program_id(1), tl.int64) * chunk
    return first, tl.minimum(size - first, chunk).to(tl.int32)


@triton.jit
def _far(member, stride):
    """Where a member's block begins."""
    return tl.cast(member, tl.int64) * stride


@triton.jit
def _copy(source, target, count, BLOCK: tl.constexpr):
    for at in range(0, count, BLOCK):
        places = at + tl.arange(0, BLOCK)
        inside = places < count
        moved = tl.load(source + places, mask=inside)
        tl.store(target + places, moved.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _slot(
    table, row: tl.constexpr, peer, half, step, chunk,
    SIZE: tl.constexpr, RING: tl.constexpr, WIRE: tl.constexpr,
):  # fmt: skip
    """Where a slot of this pair begins: on a line, so that a thread may move 16 bytes."""
    address = tl.load(table + row * SIZE + peer) + half
    number = tl.program_id(1) * RING + step % RING
    slots = tl.multiple_of(address.to(tl.pointer_type(WIRE)), 16)
    return slots + tl.cast(number, tl.int64) * chunk


@triton.jit
def _flag(table, row: tl.constexpr, peer, kind, SIZE: tl.constexpr):
    """A flag of this pair: those that say full, `kind` 0, and behind them those of landings."""
    address = tl.load(table + row * SIZE + peer) + (kind + tl.program_id(1)) * _LINE
    return address.to(tl.pointer_type(tl.int32))

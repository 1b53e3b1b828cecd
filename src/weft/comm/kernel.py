"""Calls of even blocks in one kernel a member: chunks through slots of peer memory, in which order,
under which flags.

A call runs as pairs of programs, alike on every member; pairs do not know of each other. Each of
the others has a ring of slots and two flags a pair at a member, FULL and LANDED. A pair walks
through its chunks: one program pushes them, the other takes out what arrives; with e the steps of
all calls before, step t is

    await LANDED of r here >= e + t - RING + 1      for each r, from step RING on
    chunk t of what is for r -> own slot t mod RING at r
    raise own FULL at r to e + t + 1

    await FULL of s here >= e + t + 1               for each s
    slot t mod RING of s -> where it belongs, copied or added
    raise own LANDED at s to e + t + 1              where s waits for it

There are two such sets of slots, for even and for odd calls, so that nobody has to say that the
slots of the call before are empty. Whoever writes in call k has ended call k - 1, and in it has
seen a flag of each of the others: they had begun call k - 1, behind the end of call k - 2, which
was the last one to read these slots.

A pair waits for its own number alone, so a device need not run more than one of them at once, if it
begins them in order. Channels have no order among each other: where members begin the calls of
several in different orders, some channel must have a pair on all their devices at once. So a call
takes less than half of a device (`Shape`): beside two of them there is room for pairs of a third.
As one program does not know how far the other is, nothing that is pushed may lie where something
arrives. Slots and flags are others than those of `weft.comm.exchange`; the two kinds of calls of a
channel follow each other on a stream and share no more.

NOTE: a kernel cannot be held from the host, so its waits are counted: one that has looked often
enough writes down for whom it waited and ends, and `Watch` tells.
"""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor

from weft.comm.call import Call, Collective
from weft.comm.exchange import Flag, Mark

LINE = 128  # bytes of a cache line: a flag has its own
WARPS, REGISTERS = 8, 64  # of a program; of a thread at most, at any number of members
SLOT_BYTES = 1 << 24  # of a set of slots, at most, over all other members
# Of a block in a step. A kernel is faster than copies and holds multiprocessors meanwhile; up to
# here whole steps are faster by it as well: docs/decisions/0006.
MOST_BYTES = 1 << 26
_WRAP = 1 << 32
_SUMS = (Collective.REDUCE_SCATTER, Collective.ALL_REDUCE, Collective.ALL_TO_ALL_SUM)
_MOVES = (Collective.ALL_GATHER, Collective.ALL_TO_ALL)
_TO_ALL = (Collective.ALL_GATHER, Collective.ALL_REDUCE)  # the same block to every member


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How a block is cut: pairs at most, slots of each, bytes that a chunk has at least, and what
    chunks are multiples of.
    """

    pairs: int = 128  # 256 programs; an H200 runs 528 of 8 warps with 64 registers a thread
    ring: int = 2
    grain: int = 1 << 14
    line: int = LINE


SHAPE = Shape()


class Walk(NamedTuple):
    """How the pairs of a call go through a block: bytes of a chunk, chunks, pairs."""

    chunk: int
    chunks: int
    pairs: int

    @property
    def steps(self) -> int:
        """The most chunks of a pair."""
        return -(-self.chunks // self.pairs)


def walk(size: int, slot_bytes: int, shape: Shape = SHAPE) -> Walk:
    """How to go through a block of so many bytes; the same on all members, whatever their tensors
    are made of.

    Example:
        >>> walk(2**20, 2**24)
        Walk(chunk=16384, chunks=64, pairs=64)
        >>> walk(2**26, 2**24), walk(2**26, 2**24).steps
        (Walk(chunk=65536, chunks=1024, pairs=128), 8)
    """
    pairs = min(shape.pairs, slot_bytes // (shape.ring * shape.line))
    most = slot_bytes // (pairs * shape.ring) // shape.line * shape.line
    even = -(-size // (pairs * shape.line)) * shape.line
    chunk = min(max(even, shape.grain), most)
    chunks = max(-(-size // chunk), 1)
    return Walk(chunk=chunk, chunks=chunks, pairs=min(chunks, pairs))


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """Where a kernel finds the flags and slots of a group."""

    table: Tensor  # int64 [4, members]: addresses of own flags and slots there, of theirs here
    failed: Tensor  # int32 [2]: one more than the position that did not come, and the epoch
    size: int
    position: int
    slot_bytes: int  # of one of the two sets of slots
    spins: int  # looks at a flag, at most
    shape: Shape = SHAPE

    def walk(self, block_bytes: int) -> Walk:
        """How the pairs of a call go through a block."""
        return walk(block_bytes, self.slot_bytes, self.shape)


class Turn(NamedTuple):
    """Which call it is: the steps of all before it, and which set of slots it takes."""

    epoch: int
    slots: int


class Exchange(Protocol):
    """A kernel: `x` begins with what is for position 0, and what is for the next one lies `stride`
    elements behind it; what arrives lies side by side in `out`.
    """

    def __call__(self, board: Board, turn: Turn, x: Tensor, out: Tensor, stride: int) -> None: ...


class Add(Protocol):
    """The same, but what arrives is added up in `out`. All terms are rounded to `wire`."""

    def __call__(
        self, board: Board, turn: Turn, x: Tensor, out: Tensor, stride: int, wire: torch.dtype
    ) -> None: ...


class Bodies(NamedTuple):
    """The two kernels."""

    exchange: Exchange
    add: Add


class Calls(Protocol):
    """What a call tells the memory of its channel."""

    def begin(self, name: object) -> None: ...

    def expect(self, marks: list[Mark]) -> None: ...

    def end(self) -> None: ...


@final
class KernelChannel:
    """One member's calls in a group that are one kernel, counted; their blocks have `most` bytes at
    most.
    """

    def __init__(
        self, memory: Calls, board: Board, bodies: Bodies, *, most: int, epoch: int = 0
    ) -> None:
        self._memory = memory
        self._board = board
        self._bodies = bodies
        self._most = most
        self._epoch = epoch
        self._calls = 0

    def takes(self, call: Call) -> bool:
        """Whether a call is one kernel; found alike on all members, so ragged rows never are."""
        if call.collective not in (*_SUMS, *_MOVES):
            return False
        return _block_bytes(call, self._board.size) <= self._most

    def post(self, name: object, call: Call, x: Tensor, out: Tensor) -> None:
        """Orders a call behind what the caller has issued."""
        board, turn = self._board, Turn(self._epoch, self._calls % 2)
        self._calls += 1
        self._epoch += board.walk(_block_bytes(call, board.size)).steps
        others = (peer for peer in range(board.size) if peer != board.position)
        self._memory.begin(name)
        self._memory.expect([Mark(peer, Flag.KERNEL, self._epoch) for peer in others])
        stride = 0 if call.collective in _TO_ALL else x.numel() // board.size
        if call.collective in _SUMS:
            self._bodies.add(board, turn, x.view(-1), out.view(-1), stride, call.dtype)
        else:
            self._bodies.exchange(board, turn, x.view(-1), out.view(-1), stride)
        self._memory.end()


def signed(epoch: int) -> int:
    """An epoch as a kernel compares it.

    Example:
        >>> [signed(epoch) for epoch in (1, 2**31, 2**32 - 1, 2**32)]
        [1, -2147483648, -1, 0]
    """
    return (epoch + _WRAP // 2) % _WRAP - _WRAP // 2


def kernel_slot_bytes(slot_bytes: int, size: int) -> int:
    """The bytes of a set of slots, of which each of the others has two.

    Example:
        >>> [kernel_slot_bytes(2**24, size) >> 10 for size in (2, 3, 9)]
        [16384, 8192, 2048]
    """
    return min(SLOT_BYTES // (size - 1), slot_bytes) // LINE * LINE


def _block_bytes(call: Call, size: int) -> int:
    num_bytes = prod(call.shape) * call.dtype.itemsize
    return num_bytes if call.collective in _TO_ALL else num_bytes // size

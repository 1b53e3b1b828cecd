"""Short calls in one kernel a member: chunks through slots of peer memory, in which order, under
which flags.

A call of k-th number runs as programs that do not know of each other, alike on every member. Each
of the others has two slots and a flag a program at a member:

    program p    chunk p of what is for r -> own slot k mod 2 at r, for each r
                 raise own flag p at r to k, for each r
                 await flag p of s here >= k, for each s
                 chunk p of slot k mod 2 of s -> where it belongs, copied or added

Nobody says that a slot is empty. Whoever writes a slot in call k has ended call k - 1, and in it
has seen a flag of each of the others: they had begun call k - 1, behind the end of call k - 2,
which was the last one to read this slot.

A program pushes before it waits, and waits for its own number alone, so it does not matter how many
of them a device runs at once. Slots and flags are others than those of `weft.comm.exchange`; the
two kinds of calls of a channel follow each other on a stream and share no more.

NOTE: a kernel cannot be held from the host, so its waits are counted: one that has looked often
enough writes down for whom it waited and ends, and `Watch` tells.
"""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Protocol, final

from torch import Tensor

from weft.comm.call import Call, Collective
from weft.comm.exchange import Flag, Mark

PROGRAMS = 32  # at most: a quarter of an H200's multiprocessors, whose other kernels go on
SHORT_BYTES = 1 << 22  # received in a call, at most: 10 us of wire, for which copy engines do
LINE = 128  # bytes of a cache line: a flag has its own
_GRAIN = 1 << 14  # bytes of a chunk: 64 a thread of eight warps
_WRAP = 1 << 32
_SUMS = (Collective.REDUCE_SCATTER, Collective.ALL_REDUCE)
_MOVES = (Collective.ALL_GATHER, Collective.ALL_TO_ALL)
_TO_ALL = (Collective.ALL_GATHER, Collective.ALL_REDUCE)  # the same block to every member


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """Where a kernel finds the flags and slots of a group."""

    table: Tensor  # int64 [4, members]: addresses of own flags and slots there, of theirs here
    failed: Tensor  # int32 [2]: one more than the position that did not come, and the epoch
    size: int
    position: int
    slot_bytes: int
    spins: int  # looks at a flag, at most


class Body(Protocol):
    """A kernel: `x` begins with what is for position 0, and what is for the next one lies `stride`
    elements behind it. The epoch is a signed number of 32 bits.
    """

    def __call__(self, board: Board, epoch: int, x: Tensor, out: Tensor, stride: int) -> None: ...


class Bodies(NamedTuple):
    """The two kernels: what arrives lies side by side in `out`, or is added there."""

    exchange: Body
    add: Body


class Calls(Protocol):
    """What a call tells the memory of its channel."""

    def begin(self, name: object) -> None: ...

    def expect(self, marks: list[Mark]) -> None: ...

    def end(self) -> None: ...


@final
class ShortChannel:
    """One member's short calls in a group, counted."""

    def __init__(self, memory: Calls, board: Board, bodies: Bodies, *, epoch: int = 0) -> None:
        self._memory = memory
        self._board = board
        self._bodies = bodies
        self._epoch = epoch

    def takes(self, call: Call) -> bool:
        """Whether a call is short; found alike on all members, so ragged rows never are."""
        if call.collective not in (*_SUMS, *_MOVES):
            return False
        return _block_bytes(call, self._board.size) <= self._board.slot_bytes

    def post(self, name: object, call: Call, x: Tensor, out: Tensor) -> None:
        """Orders a call behind what the caller has issued."""
        self._epoch += 1
        others = (peer for peer in range(self._board.size) if peer != self._board.position)
        self._memory.begin(name)
        self._memory.expect([Mark(peer, Flag.SHORT, self._epoch) for peer in others])
        body = self._bodies.add if call.collective in _SUMS else self._bodies.exchange
        stride = 0 if call.collective in _TO_ALL else x.numel() // self._board.size
        body(self._board, signed(self._epoch), x.view(-1), out.view(-1), stride)
        self._memory.end()


def signed(epoch: int) -> int:
    """An epoch as a kernel compares it.

    Example:
        >>> [signed(epoch) for epoch in (1, 2**31, 2**32 - 1, 2**32)]
        [1, -2147483648, -1, 0]
    """
    return (epoch + _WRAP // 2) % _WRAP - _WRAP // 2


def short_slot_bytes(slot_bytes: int, size: int) -> int:
    """The bytes of a slot for short calls, of which each of the others has two.

    Example:
        >>> [short_slot_bytes(2**24, size) >> 10 for size in (2, 3, 9)]
        [4096, 2048, 512]
    """
    return min(SHORT_BYTES // (size - 1), slot_bytes) // LINE * LINE


def _block_bytes(call: Call, size: int) -> int:
    num_bytes = prod(call.shape) * call.dtype.itemsize
    return num_bytes if call.collective in _TO_ALL else num_bytes // size


def chunk_bytes(size: int) -> int:
    """The bytes of a block that one program carries; the same on all members, whatever their
    tensors are made of.

    Example:
        >>> [chunk_bytes(size) >> 10 for size in (1, 2**16, 2**20, 2**22)]
        [16, 16, 32, 128]
    """
    return -(-size // (PROGRAMS * _GRAIN)) * _GRAIN if size else _GRAIN

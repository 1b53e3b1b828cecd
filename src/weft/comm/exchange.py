"""Blocks between the members of a group through slots of peer memory: in which order, under which
flags.

Each member has an arena. In it every other member has `SLOTS` slots, which that one fills, and two
flags, which that one raises: `FULL` counts the pieces it has pushed here, `LANDED` the pieces from
here that it has taken out of its own slots. The e-th piece that ever goes from s to r:

    push, a queue of s     await LANDED of r >= e - SLOTS      the slot is empty again
                           piece -> slot e mod SLOTS of s at r
                           raise FULL of s at r to e
    land, a queue of r     await FULL of s >= e
                           slot -> where it belongs, copied or added
                           raise LANDED of r at s to e

Flags only rise, by epochs of our own; nothing is ever reset. A block of no bytes is a piece of no
bytes, so a member with nothing to send raises its flags all the same and both ends of a pair count
alike. The queues of a channel start from one point and are joined at the end of a call; between
the two, pieces land while later ones travel.

NOTE: whatever a queue awaits was ordered before it on the member that does it, calls and pieces
counted: so members that make their calls in one order go on even where a device runs queues that
should be apart one after the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import final

from torch import Tensor

SLOTS = 2  # one is filled while the other is emptied
_WRAP = 1 << 32  # flags have 32 bits


class Queue(IntEnum):
    """Behind what an operation is ordered: what was pushed, or what has landed."""

    PUSH = 0
    LAND = 1


class Flag(IntEnum):
    """What one member counts at another."""

    FULL = 0
    LANDED = 1


class PeerMemory(ABC):
    """The arenas of a group as one member reaches them. Every operation is ordered on a queue;
    none waits on the host.
    """

    @property
    @abstractmethod
    def slot_bytes(self) -> int:
        """The bytes of one slot, the same on every member."""

    @abstractmethod
    def local(self, peer: int, slot: int) -> Tensor:
        """A peer's slot in the own arena, as bytes."""

    @abstractmethod
    def remote(self, peer: int, slot: int) -> Tensor:
        """The own slot in a peer's arena, as bytes."""

    @abstractmethod
    def fork(self, name: object) -> None:
        """Starts both queues behind what the caller has issued; `name` is what a report would call
        it, put into words only then.
        """

    @abstractmethod
    def join(self) -> None:
        """Orders what the caller issues from now on behind both queues."""

    @abstractmethod
    def copy(
        self, queue: Queue, target: Tensor, source: Tensor, *, to: int, at: int, size: int
    ) -> None:
        """Copies bytes of a tensor of bytes, from `at` on, into another one, from `to` on."""

    @abstractmethod
    def run(self, queue: Queue, body: Callable[[], object]) -> None:
        """Calls what works on tensors."""

    @abstractmethod
    def raise_flag(self, queue: Queue, peer: int, flag: Flag, epoch: int) -> None:
        """Sets the own flag at a peer, once everything before it on the queue is done."""

    @abstractmethod
    def await_flag(self, queue: Queue, peer: int, flag: Flag, epoch: int) -> None:
        """Holds the queue until a peer's flag here has reached an epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A stretch of a flat tensor of bytes: sent as it is, or where what lands is copied to."""

    tensor: Tensor
    first: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """Bytes that are made on their way: `make` writes them, from a byte on, into a slot."""

    size: int
    make: Callable[[Tensor, int, int], object]  # slot, first, size


@dataclass(frozen=True, kw_only=True, slots=True)
class Sum:
    """Where what lands is added: `add` takes the slots of the others by position, each piece once
    all of them are here.
    """

    size: int
    add: Callable[[dict[int, Tensor], int, int], object]  # slots, first, size


def num_pieces(size: int, slot_bytes: int) -> int:
    """How many pieces a block travels in; both ends of a pair find the same.

    Example:
        >>> [num_pieces(size, 1024) for size in (0, 1, 1024, 1025)]
        [1, 1, 1, 2]
    """
    return max(-(-size // slot_bytes), 1)


def reached(seen: int, epoch: int) -> bool:
    """Whether a flag of 32 bits stands at an epoch or past it, wrapped or not.

    Example:
        >>> [reached(seen, 2**32) for seen in (2**32 - 1, 0, 5)]
        [False, True, True]
    """
    return (seen - epoch) % _WRAP < _WRAP // 2


@final
class Channel:
    """One member's end of a group: how many pieces it has exchanged with each of the others.

    Every member makes the same calls in the same order. `epoch` is where all flags stand.
    """

    def __init__(self, memory: PeerMemory, *, size: int, position: int, epoch: int = 0) -> None:
        self._memory = memory
        self._position = position
        # each starts with its neighbour, so that no member is everybody's first
        self._others = tuple((position + way) % size for way in range(1, size))
        self._pushed = [epoch] * size
        self._landed = [epoch] * size

    def exchange(self, name: object, sends: Sequence[Block], lands: Sequence[Block]) -> None:
        """Copies every block to its member, the own one too."""
        self._memory.fork(name)
        own, home = sends[self._position], lands[self._position]
        if own.size:
            self._memory.copy(
                Queue.LAND, home.tensor, own.tensor, to=home.first, at=own.first, size=own.size
            )
        for number in range(self._rounds((*sends, *lands))):
            self._push_round(number, sends)
            for peer in self._others:
                if number < self._pieces(lands[peer].size):
                    self._land(number, peer, lands[peer])
        self._memory.join()

    def add(self, name: object, sends: Sequence[Block | Made], total: Sum) -> None:
        """Sends every block to its member and adds what comes from all of them."""
        self._memory.fork(name)
        for number in range(self._rounds((*sends, total))):
            self._push_round(number, sends)
            if number < self._pieces(total.size):
                self._add_round(number, total)
        self._memory.join()

    def _pieces(self, size: int) -> int:
        return num_pieces(size, self._memory.slot_bytes)

    def _rounds(self, blocks: Sequence[Block | Made | Sum]) -> int:
        return max(self._pieces(block.size) for block in blocks)

    def _stretch(self, number: int, size: int) -> tuple[int, int]:
        """Where the piece of a block begins, and its bytes."""
        first = number * self._memory.slot_bytes
        return first, min(size - first, self._memory.slot_bytes)

    def _push_round(self, number: int, sends: Sequence[Block | Made]) -> None:
        for peer in self._others:
            if number < self._pieces(sends[peer].size):
                self._push(number, peer, sends[peer])

    def _push(self, number: int, peer: int, block: Block | Made) -> None:
        memory = self._memory
        epoch = self._pushed[peer] = self._pushed[peer] + 1
        memory.await_flag(Queue.PUSH, peer, Flag.LANDED, epoch - SLOTS)
        first, size = self._stretch(number, block.size)
        slot = memory.remote(peer, epoch % SLOTS)
        if size:
            match block:
                case Block():
                    at = block.first + first
                    memory.copy(Queue.PUSH, slot, block.tensor, to=0, at=at, size=size)
                case Made():
                    memory.run(Queue.PUSH, lambda: block.make(slot, first, size))
        memory.raise_flag(Queue.PUSH, peer, Flag.FULL, epoch)

    def _arrived(self, peer: int) -> tuple[int, Tensor]:
        """The epoch of a peer's next piece, awaited, and the slot that holds it."""
        epoch = self._landed[peer] = self._landed[peer] + 1
        self._memory.await_flag(Queue.LAND, peer, Flag.FULL, epoch)
        return epoch, self._memory.local(peer, epoch % SLOTS)

    def _land(self, number: int, peer: int, block: Block) -> None:
        memory = self._memory
        epoch, slot = self._arrived(peer)
        first, size = self._stretch(number, block.size)
        if size:
            to = block.first + first
            memory.copy(Queue.LAND, block.tensor, slot, to=to, at=0, size=size)
        memory.raise_flag(Queue.LAND, peer, Flag.LANDED, epoch)

    def _add_round(self, number: int, total: Sum) -> None:
        memory = self._memory
        arrived = {peer: self._arrived(peer) for peer in self._others}
        first, size = self._stretch(number, total.size)
        if size:
            slots = {peer: slot for peer, (_, slot) in arrived.items()}
            memory.run(Queue.LAND, lambda: total.add(slots, first, size))
        for peer, (epoch, _) in arrived.items():
            memory.raise_flag(Queue.LAND, peer, Flag.LANDED, epoch)

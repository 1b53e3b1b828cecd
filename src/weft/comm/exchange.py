"""Blocks between the members of a group through slots of peer memory: in which order, under which
flags.

Each member has an arena. In it every other member has `SLOTS` slots, which that one fills, and
flags, which that one raises: `FULL_EVEN` and `FULL_ODD` stand at the last piece of an even and of
an odd epoch that it has pushed here, `LANDED` at the last piece from here that it has taken out of
its own slots. The e-th piece that ever goes from s to r:

    push, a queue of s     await LANDED of r >= e - SLOTS      the slot is empty again
                           piece -> slot e mod SLOTS of s at r
                           raise FULL of s at r to e
    land, a queue of r     await FULL of s >= e
                           slot -> where it belongs, copied or added
                           raise LANDED of r at s to e

Flags only rise, by epochs of our own; nothing is ever reset. A block of no bytes is a piece of no
bytes, so a member with nothing to send raises its flags all the same and both ends of a pair count
alike.

A short call is pushed and then taken out on the queue of the caller; only what the member keeps is
copied beside it. In a longer one pieces leave on two queues in turn, so that what one awaits, flags
and begins is hidden by what the other one copies, and land on a third. Two queues finish in any
order, hence two flags: of a pair, pieces of even epochs follow each other on one queue, those of
odd ones on the other.

NOTE: a slot needs no flag where it is known to be empty. Whoever lands a piece that a peer pushed
in a call has behind it all that this peer did in the calls before; so what was pushed before the
last call has landed.

NOTE: whatever a queue awaits was ordered before it on the member that does it, calls and pieces
counted: so members that make their calls in one order go on even where a device runs queues that
should be apart one after the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple, final

from torch import Tensor

from weft.comm.route import Piece, Round, Route

SLOTS = 4  # of each queue of pushes one is filled while the other is emptied
_WRAP = 1 << 32  # flags have 32 bits
# Bytes that land while a queue would be forked and joined, about 9 us.
_TOGETHER = 1 << 20


class Queue(IntEnum):
    """Behind what an operation is ordered: what the caller has issued, pushes beside those, or what
    has landed.
    """

    CALLER = 0
    PUSH = 1
    LAND = 2


class Flag(IntEnum):
    """What one member counts at another."""

    FULL_EVEN = 0
    FULL_ODD = 1
    LANDED = 2
    KERNEL = 3  # calls that are one kernel: `weft.comm.kernel`


_FULL = (Flag.FULL_EVEN, Flag.FULL_ODD)


class Mark(NamedTuple):
    """A flag of a pair, and the epoch to which it is raised or that it must reach."""

    peer: int
    flag: Flag
    epoch: int


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
    def begin(self, name: object) -> None:
        """Starts a call behind what the caller has issued; `name` is what a report would call it,
        put into words only then.
        """

    @abstractmethod
    def fork(self, *queues: Queue) -> None:
        """Starts queues behind what the call has ordered on the queue of the caller."""

    @abstractmethod
    def join(self, *queues: Queue) -> None:
        """Orders what is put on the queue of the caller from now on behind these queues."""

    @abstractmethod
    def end(self) -> None:
        """Ends a call, all of whose queues are joined."""

    @abstractmethod
    def push(self, queue: Queue, piece: Piece, slot: int, x: Tensor) -> None:
        """Copies a piece of a tensor into the own slot at its member."""

    @abstractmethod
    def land(self, queue: Queue, piece: Piece, slot: int, out: Tensor) -> None:
        """Copies what lies in a slot of a piece's member to its place in a tensor."""

    @abstractmethod
    def keep(self, queue: Queue, source: Piece, target: Piece, x: Tensor, out: Tensor) -> None:
        """Copies a piece of one tensor to its place in another."""

    @abstractmethod
    def run(self, queue: Queue, body: Callable[[], object]) -> None:
        """Calls what works on tensors."""

    @abstractmethod
    def raise_flags(self, queue: Queue, marks: Sequence[Mark]) -> None:
        """Sets own flags at peers, once everything before them on the queue is done."""

    @abstractmethod
    def await_flags(self, queue: Queue, marks: Sequence[Mark]) -> None:
        """Holds the queue until flags of peers here have reached their epochs."""


# Writes a piece of a block, from its first byte on, into a slot.
Make = Callable[[Piece, Tensor], object]
# Adds a piece of every other member, which lie in slots by position, where it belongs.
Add = Callable[[Piece, dict[int, Tensor]], object]


def reached(seen: int, epoch: int) -> bool:
    """Whether a flag of 32 bits stands at an epoch or past it, wrapped or not.

    Example:
        >>> [reached(seen, 2**32) for seen in (2**32 - 1, 0, 5)]
        [False, True, True]
    """
    return (seen - epoch) % _WRAP < _WRAP // 2


_Push = Callable[[Queue, Piece, int], object]
_Take = Callable[[Queue, Sequence[Piece], Sequence[int]], object]


class _Bodies(NamedTuple):
    """What a call does with a piece to push, with what it keeps, and with pieces that are here;
    which of a round must be here at once.
    """

    push: _Push
    keep: Callable[[Round], object]
    groups: Callable[[tuple[Piece, ...]], tuple[tuple[Piece, ...], ...]]
    take: _Take


def _nothing(_: Round) -> None:
    pass


def _apart(pieces: tuple[Piece, ...]) -> tuple[tuple[Piece, ...], ...]:
    return tuple((piece,) for piece in pieces)


def _together(pieces: tuple[Piece, ...]) -> tuple[tuple[Piece, ...], ...]:
    return (pieces,) if pieces else ()


def _is_short(route: Route) -> bool:
    """Whether no landing but the last one's is worth a queue of its own."""
    first, *more = route
    return not more and sum(piece.size for piece in first.lands[1:]) <= _TOGETHER


@final
class Channel:
    """One member's end of a group: how many pieces it has exchanged with each of the others.

    Every member makes the same calls in the same order. `epoch` is where all flags stand.
    """

    def __init__(self, memory: PeerMemory, *, size: int, position: int, epoch: int = 0) -> None:
        self._memory = memory
        self.position = position
        self.size = size
        self._pushed = [epoch] * size
        self._landed = [epoch] * size
        self._before = [epoch] * size  # pushed, as the last call found it
        self._empty = [epoch] * size  # what is known to have landed

    @property
    def slot_bytes(self) -> int:
        """The most bytes of a piece."""
        return self._memory.slot_bytes

    def exchange(self, name: object, route: Route, x: Tensor, out: Tensor) -> None:
        """Copies blocks of bytes to their members, the own one too."""
        memory = self._memory

        def push(queue: Queue, piece: Piece, slot: int) -> None:
            memory.push(queue, piece, slot, x)

        def keep(part: Round) -> None:
            memory.keep(Queue.LAND, part.own, part.home, x, out)

        def take(queue: Queue, pieces: Sequence[Piece], slots: Sequence[int]) -> None:
            for piece, slot in zip(pieces, slots, strict=True):
                if piece.size:
                    memory.land(queue, piece, slot, out)

        self._call(name, route, _Bodies(push, keep, _apart, take))

    def add(self, name: object, route: Route, x: Tensor, add: Add) -> None:
        """Copies blocks of bytes to their members and adds what comes from all of them."""
        memory = self._memory

        def push(queue: Queue, piece: Piece, slot: int) -> None:
            memory.push(queue, piece, slot, x)

        self._call(name, route, _Bodies(push, _nothing, _together, self._adding(add)))

    def add_made(self, name: object, route: Route, make: Make, add: Add) -> None:
        """Makes blocks in the slots of their members and adds what comes from all of them."""
        memory = self._memory

        def push(queue: Queue, piece: Piece, slot: int) -> None:
            memory.run(queue, lambda: make(piece, memory.remote(piece.peer, slot)))

        self._call(name, route, _Bodies(push, _nothing, _together, self._adding(add)))

    def _adding(self, add: Add) -> _Take:
        memory = self._memory

        def take(queue: Queue, pieces: Sequence[Piece], slots: Sequence[int]) -> None:
            if pieces[0].size:
                peers = (piece.peer for piece in pieces)
                found = {
                    peer: memory.local(peer, slot) for peer, slot in zip(peers, slots, strict=True)
                }
                memory.run(queue, lambda: add(pieces[0], found))

        return take

    def _call(self, name: object, route: Route, bodies: _Bodies) -> None:
        self._empty, self._before = self._before, list(self._pushed)
        self._memory.begin(name)
        if _is_short(route):
            self._at_once(route, bodies)
        else:
            self._in_rounds(route, bodies)
        self._memory.end()

    def _at_once(self, route: Route, bodies: _Bodies) -> None:
        (only,) = route
        beside = (Queue.LAND,) if only.own.size else ()
        if beside:
            self._memory.fork(*beside)
            bodies.keep(only)
        self._push(Queue.CALLER, only.pushes, bodies.push)
        self._land(Queue.CALLER, only.lands, bodies.take)
        if beside:
            self._memory.join(*beside)

    def _in_rounds(self, route: Route, bodies: _Bodies) -> None:
        ways = (Queue.CALLER, Queue.PUSH)
        self._memory.fork(Queue.PUSH, Queue.LAND)
        for number, one in enumerate(route):
            for piece in one.pushes:
                way = ways[(number + piece.peer) % len(ways)]
                self._push(way, (piece,), bodies.push)
            if one.own.size:
                bodies.keep(one)
            for group in bodies.groups(one.lands):
                self._land(Queue.LAND, group, bodies.take)
        self._memory.join(Queue.PUSH, Queue.LAND)

    def _push(self, queue: Queue, pieces: Sequence[Piece], push: _Push) -> None:
        """Pushes a piece to each of some members, whose flags are raised behind all of them."""
        full = [self._next(self._pushed, piece.peer) for piece in pieces]
        empty = [
            Mark(peer, Flag.LANDED, epoch - SLOTS)
            for peer, _, epoch in full
            if epoch - SLOTS > self._empty[peer]
        ]
        if empty:
            self._memory.await_flags(queue, empty)
        for piece, (_, _, epoch) in zip(pieces, full, strict=True):
            if piece.size:
                push(queue, piece, epoch % SLOTS)
        self._memory.raise_flags(queue, full)

    def _land(self, queue: Queue, pieces: Sequence[Piece], take: _Take) -> None:
        """Takes a piece of each of some members out of its slot, once all of them are here."""
        full = [self._next(self._landed, piece.peer) for piece in pieces]
        self._memory.await_flags(queue, full)
        take(queue, pieces, [epoch % SLOTS for _, _, epoch in full])
        self._memory.raise_flags(queue, [Mark(peer, Flag.LANDED, epoch) for peer, _, epoch in full])

    def _next(self, counts: list[int], peer: int) -> Mark:
        """The next piece of a pair, counted, as the flag that tells of it."""
        epoch = counts[peer] = counts[peer] + 1
        return Mark(peer, _FULL[epoch % 2], epoch)

"""Peer memory inside one process, run in an order that an adversary draws.

Nothing happens when an operation is ordered: it joins its queue, and `run` takes turns over all
queues of all members at random, in bursts, so that some member is always far ahead of some other. A
copy is two operations, so that another queue may come between its halves. What a wire would only do
under load is what this one does all the time, and from a seed it does it again.

    queue of a member     done in the order in which it was filled
    line of a member      all its queues in one, as on a device that cannot keep them apart
    flag                  a queue whose head waits for an epoch stands still until it is there
    fork, join            a queue of a member waits for another one
"""

import random
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from weft.comm.exchange import SLOTS, Flag, Mark, PeerMemory, Queue, reached
from weft.comm.route import Piece
from weft.errors import DeadlockError

_WRAP = 1 << 32  # flags are 32 bits wide
_BURSTS = (1, 1, 3, 12)  # operations in a row: between two halves, and more than a piece takes


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """One operation, when it may be done, and what it is in words."""

    name: str
    ready: Callable[[], bool]
    body: Callable[[], object]


Line = deque[_Step]


@dataclass(kw_only=True, slots=True)
class _Member:
    """The arena of a member and what it has been asked to do."""

    slots: Tensor  # [members, SLOTS, slot bytes]
    flags: dict[tuple[int, Hashable], int]
    line: Line | None  # of all queues, where they are one
    queues: dict[Hashable, Line] = field(default_factory=dict)
    passed: set[int] = field(default_factory=set)  # points that a queue has reached
    points: int = 0
    name: str = ""


@final
class PeerWorld:
    """All members of one group, and the adversary that runs them. With `lines`, one a member, each
    member does all its operations in the order in which it was asked for them, those of other
    groups on the same line too.
    """

    def __init__(
        self, size: int, *, slot_bytes: int, epoch: int = 0, lines: Sequence[Line] | None = None
    ) -> None:
        flags: dict[tuple[int, Hashable], int] = {
            (peer, flag): epoch % _WRAP for peer in range(size) for flag in Flag
        }
        self.slot_bytes = slot_bytes
        self.members = [
            _Member(
                slots=torch.full((size, SLOTS, slot_bytes), 0xA5, dtype=torch.uint8),
                flags=dict(flags),
                line=lines[i] if lines else None,
            )
            for i in range(size)
        ]

    def memory(self, position: int) -> "StackedPeers":
        """The memory as one member reaches it."""
        return StackedPeers(self, position)

    def run(self, seed: int) -> None:
        """Does all that has been ordered, in an order drawn from the seed.

        Raises:
            DeadlockError: some queue can never go on; names what each one waits for.
        """
        chance = random.Random(seed)
        queues = [queue for member in self.members for queue in member.queues.values()]
        while left := [queue for queue in queues if queue]:
            able = [queue for queue in left if queue[0].ready()]
            if not able:
                raise DeadlockError(f"nobody can go on: {self._heads()}; look for a missing call")
            queue = chance.choice(able)
            for _ in range(chance.choice(_BURSTS)):
                if queue and queue[0].ready():
                    queue.popleft().body()

    def _heads(self) -> str:
        return "; ".join(
            f"position {position} {name_of(queue)} in {member.name!r}: {steps[0].name}"
            for position, member in enumerate(self.members)
            for queue, steps in member.queues.items()
            if steps
        )


def name_of(one: Hashable) -> str:
    """A queue or a flag in words."""
    match one:
        case Queue():
            return one.name.lower()
        case Flag():
            return one.name
        case _:
            return str(one)


@final
class StackedPeers(PeerMemory):
    """One member's reach into a world of peers."""

    def __init__(self, world: PeerWorld, position: int) -> None:
        self._members = world.members
        self._own = world.members[position]
        self._position = position
        self._slot_bytes = world.slot_bytes

    @property
    def slot_bytes(self) -> int:
        return self._slot_bytes

    def local(self, peer: int, slot: int) -> Tensor:
        return self._own.slots[peer, slot]

    def remote(self, peer: int, slot: int) -> Tensor:
        return self._members[peer].slots[self._position, slot]

    def begin(self, name: object) -> None:
        self._own.name = str(name)

    def fork(self, *queues: Queue) -> None:
        for queue in queues:
            self.wait(queue, Queue.CALLER)

    def join(self, *queues: Queue) -> None:
        for queue in queues:
            self.wait(Queue.CALLER, queue)

    def end(self) -> None:
        pass

    def push(self, queue: Queue, piece: Piece, slot: int, x: Tensor) -> None:
        there = self.remote(piece.peer, slot)[: piece.size]
        self.copy(queue, there, _stretch(x, piece))

    def land(self, queue: Queue, piece: Piece, slot: int, out: Tensor) -> None:
        here = self.local(piece.peer, slot)[: piece.size]
        self.copy(queue, _stretch(out, piece), here)

    def keep(self, queue: Queue, source: Piece, target: Piece, x: Tensor, out: Tensor) -> None:
        self.copy(queue, _stretch(out, target), _stretch(x, source))

    def run(self, queue: Queue, body: Callable[[], object]) -> None:
        self.order(queue, "a body", body)

    def raise_flags(self, queue: Queue, marks: Sequence[Mark]) -> None:
        for mark in marks:
            self.raise_one(queue, *mark)

    def await_flags(self, queue: Queue, marks: Sequence[Mark]) -> None:
        for mark in marks:
            self.await_one(queue, *mark)

    def expect(self, marks: Sequence[Mark]) -> None:
        """Nothing: what a queue awaits it says itself."""

    def raise_one(self, queue: Hashable, peer: int, flag: Hashable, epoch: int) -> None:
        """Sets one flag at a peer."""
        flags, key = self._members[peer].flags, (self._position, flag)
        self.order(queue, "a flag", lambda: flags.update({key: epoch % _WRAP}))

    def await_one(self, queue: Hashable, peer: int, flag: Hashable, epoch: int) -> None:
        """Holds a queue until one flag has reached an epoch; one that nobody has raised is zero."""
        flags, key = self._own.flags, (peer, flag)
        name = f"{name_of(flag)} of position {peer} to reach epoch {epoch}"
        self.order(queue, name, lambda: None, lambda: reached(flags.get(key, 0), epoch))

    def wait(self, queue: Hashable, other: Hashable) -> None:
        """Holds a queue until another one has done what it has been asked for."""
        passed, point = self._own.passed, self._own.points
        self._own.points += 1
        self.order(other, "a point", lambda: passed.add(point))
        self.order(queue, f"queue {name_of(other)}", lambda: None, lambda: point in passed)

    def copy(self, queue: Hashable, target: Tensor, source: Tensor) -> None:
        """Copies bytes, in two operations."""
        half = len(source) // 2
        for part in (slice(None, half), slice(half, None)):
            there, here = target[part], source[part]
            self.order(queue, "a copy", lambda a=there, b=here: a.copy_(b))

    def order(
        self,
        queue: Hashable,
        name: str,
        body: Callable[[], object],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """Puts an operation at the end of a queue."""
        own = self._own
        steps = own.queues.setdefault(queue, deque() if own.line is None else own.line)
        steps.append(_Step(name=name, ready=ready, body=body))


def _stretch(x: Tensor, piece: Piece) -> Tensor:
    return x[piece.first : piece.first + piece.size]

"""Peer memory inside one process, run in an order that an adversary draws.

Nothing happens when an operation is ordered: it joins its queue, and `run` takes turns over all
queues of all members at random, in bursts, so that some member is always far ahead of some other. A
copy is two operations, so that another queue may come between its halves. What a wire would only do
under load is what this one does all the time, and from a seed it does it again.

    queue of a member     done in the order in which it was filled
    line of a member      all its queues in one, as on a device that cannot keep them apart
    flag                  a queue whose head waits for an epoch stands still until it is there
    fork, join            the queues of a member meet
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from weft.comm.exchange import SLOTS, Flag, PeerMemory, Queue, reached
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
    flags: dict[tuple[int, Flag], int]
    queues: dict[Queue, Line]
    met: dict[int, int] = field(default_factory=dict)
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
        flags = {(peer, flag): epoch % _WRAP for peer in range(size) for flag in Flag}
        self.slot_bytes = slot_bytes
        self.members = [
            _Member(
                slots=torch.full((size, SLOTS, slot_bytes), 0xA5, dtype=torch.uint8),
                flags=dict(flags),
                queues={queue: lines[i] if lines else deque() for queue in Queue},
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
            f"position {position} {queue.name.lower()} in {member.name!r}: {steps[0].name}"
            for position, member in enumerate(self.members)
            for queue, steps in member.queues.items()
            if steps
        )


@final
class StackedPeers(PeerMemory):
    """One member's reach into a world of peers."""

    def __init__(self, world: PeerWorld, position: int) -> None:
        self._members = world.members
        self._own = world.members[position]
        self._position = position
        self._slot_bytes = world.slot_bytes
        self._joins = 0

    @property
    def slot_bytes(self) -> int:
        return self._slot_bytes

    def local(self, peer: int, slot: int) -> Tensor:
        return self._own.slots[peer, slot]

    def remote(self, peer: int, slot: int) -> Tensor:
        return self._members[peer].slots[self._position, slot]

    def fork(self, name: object) -> None:
        self._own.name = str(name)

    def join(self) -> None:
        """Makes both queues meet, so that the next call starts behind both."""
        number, met = self._joins, self._own.met
        self._joins += 1
        met[number] = 0
        for queue in Queue:
            self._order(queue, "the end of a call", lambda: met.update({number: met[number] + 1}))
        for queue in Queue:
            self._order(queue, "the other queue", lambda: None, lambda: met[number] == len(Queue))

    def copy(
        self, queue: Queue, target: Tensor, source: Tensor, *, to: int, at: int, size: int
    ) -> None:
        half = size // 2
        for first, last in ((0, half), (half, size)):
            there, here = target[to + first : to + last], source[at + first : at + last]
            self._order(queue, "a copy", lambda a=there, b=here: a.copy_(b))

    def run(self, queue: Queue, body: Callable[[], object]) -> None:
        self._order(queue, "a body", body)

    def raise_flag(self, queue: Queue, peer: int, flag: Flag, epoch: int) -> None:
        flags, key = self._members[peer].flags, (self._position, flag)
        self._order(queue, "a flag", lambda: flags.update({key: epoch % _WRAP}))

    def await_flag(self, queue: Queue, peer: int, flag: Flag, epoch: int) -> None:
        flags, key = self._own.flags, (peer, flag)
        name = f"{flag.name} of position {peer} to reach epoch {epoch}"
        self._order(queue, name, lambda: None, lambda: reached(flags[key], epoch))

    def _order(
        self,
        queue: Queue,
        name: str,
        body: Callable[[], object],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._own.queues[queue].append(_Step(name=name, ready=ready, body=body))

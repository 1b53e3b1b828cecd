"""What a call over peer memory should take: its operations played at the constants of two H200s.

All members are alike, so one is played: what it raises, a peer has raised for it at the same time.
One wire carries one copy after the other, each started anew, so two queues hide from each other
flags and turns but no bytes and no start.

    copy     start + bytes at the wire's or the memory's rate
    flag     written, or awaited once it is there
    turn     a queue goes from copies to flags, or back
    hop      from a flag that is written to a peer that goes on
    event    from a queue to another one of the same device

NOTE: `turn` is fitted: with it a piece of 16 MiB costs the 57 us that were measured when all of it
stood on one queue. The others are measured by themselves; the host is not in it.
"""

# ruff: noqa: ARG002 - what is played looks at no tensor

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from weft.comm.exchange import Add, Channel, Flag, Mark, PeerMemory, Queue
from weft.comm.route import Block, Piece, Route, find_route, in_turn

_WIRE, _STORES, _MEMORY = 0.40e6, 0.364e6, 4.2e6  # bytes a us: copies, stores over it, HBM
_START, _FLAG, _TURN, _HOP, _EVENT = 4.0, 2.0, 3.0, 6.0, 4.5  # us
_KERNEL = 4.0  # us until a kernel works
_COPIED, _ADDED, _GRADIENT = 2, 3, 5  # bytes of memory a byte that lands: copied, added, FP32


class Moment(NamedTuple):
    """A time, and how many hops and events lie on the way to it."""

    us: float
    hops: int

    def after(self, us: float, hops: int = 0) -> "Moment":
        """A moment later than this one."""
        return Moment(self.us + us, self.hops + hops)


@dataclass(frozen=True, kw_only=True, slots=True)
class Foretold:
    """A call: its time, how often the driver is called for it, and the hops one waits for."""

    us: float
    driver_calls: int
    hops: int


@final
class _Played(PeerMemory):
    """One member among members that are all alike; tensors are not looked at."""

    def __init__(self, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        self.running = Queue.CALLER
        self._raised: dict[tuple[Flag, int], Moment] = {}
        self._wire = Moment(0.0, 0)
        self._nothing = torch.empty(0)
        self.queues = dict.fromkeys(Queue, Moment(0.0, 0))
        self._copied = dict.fromkeys(Queue, False)  # whether the last operation was a copy
        self.calls = 0

    @property
    def slot_bytes(self) -> int:
        return self._slot_bytes

    def local(self, peer: int, slot: int) -> Tensor:
        return self._nothing

    def remote(self, peer: int, slot: int) -> Tensor:
        return self._nothing

    def begin(self, name: object) -> None:
        """Starts to count anew, where the caller stands."""
        self.calls = 0
        begun = Moment(self.queues[Queue.CALLER].us, 0)
        self.queues[Queue.CALLER] = begun

    def fork(self, *queues: Queue) -> None:
        self.calls += 1 + len(queues)
        begun = self.queues[Queue.CALLER].after(_EVENT, hops=1)
        for queue in queues:
            self.queues[queue] = max(self.queues[queue], begun)

    def join(self, *queues: Queue) -> None:
        self.calls += 2 * len(queues)
        ends = (self.queues[queue].after(_EVENT, hops=1) for queue in queues)
        self.queues[Queue.CALLER] = max(self.queues[Queue.CALLER], *ends)

    def end(self) -> None:
        self.calls += 1

    def push(self, queue: Queue, piece: Piece, slot: int, x: Tensor) -> None:
        self._begin_copy(queue)
        self.over_wire(queue, _START + piece.size / _WIRE)

    def land(self, queue: Queue, piece: Piece, slot: int, out: Tensor) -> None:
        self._begin_copy(queue)
        self.locally(queue, _START + _COPIED * piece.size / _MEMORY)

    def keep(self, queue: Queue, source: Piece, target: Piece, x: Tensor, out: Tensor) -> None:
        self.land(queue, source, 0, out)

    def run(self, queue: Queue, body: Callable[[], object]) -> None:
        self.calls += 1
        self.running = queue
        body()

    def raise_flags(self, queue: Queue, marks: Sequence[Mark]) -> None:
        self._begin_flags(queue)
        self.queues[queue] = self.queues[queue].after(_FLAG)
        for _, flag, epoch in marks:
            self._raised[flag, epoch] = self.queues[queue]

    def await_flags(self, queue: Queue, marks: Sequence[Mark]) -> None:
        self._begin_flags(queue)
        found = [
            self._raised[flag, epoch].after(_HOP - _FLAG, hops=1)  # the write is part of the hop
            for _, flag, epoch in marks
            if (flag, epoch) in self._raised
        ]
        self.queues[queue] = max(self.queues[queue].after(_FLAG), *found, key=lambda one: one.us)

    def over_wire(self, queue: Queue, us: float) -> None:
        """Takes the wire for some time, once it is free."""
        self._wire = max(self.queues[queue], self._wire).after(us)
        self.queues[queue] = self._wire

    def locally(self, queue: Queue, us: float) -> None:
        """Keeps a queue busy for some time."""
        self.queues[queue] = self.queues[queue].after(us)

    def _begin_copy(self, queue: Queue) -> None:
        self.calls += 1
        self._turn(queue, copies=True)

    def _begin_flags(self, queue: Queue) -> None:
        self.calls += 1
        self._turn(queue, copies=False)

    def _turn(self, queue: Queue, *, copies: bool) -> None:
        if self._copied[queue] is not copies:
            self.queues[queue] = self.queues[queue].after(_TURN)
        self._copied[queue] = copies


def render(rows: Sequence[tuple[str, int]], *, slot_bytes: int) -> str:
    """A table: a line for each collective and the bytes that each member receives."""
    lines = [
        f"{'foretold, two members':<21}{'MB':>5}{'us':>8}{'GB/s':>7}{'driver calls':>14}{'hops':>6}"
    ]
    for name, received_bytes in rows:
        found = foretell(name, received_bytes, slot_bytes=slot_bytes)
        rate = received_bytes / found.us / 1e3
        lines.append(
            f"{name:<21}{received_bytes / 2**20:>5.0f}{found.us:>8.0f}{rate:>7.0f}"
            f"{found.driver_calls:>14}{found.hops:>6}"
        )
    return "\n".join(lines)


def foretell(name: str, received_bytes: int, *, slot_bytes: int) -> Foretold:
    """A call of two members behind others like it, by the bytes that each receives.

    Example:
        >>> [round(foretell("all_gather", 2**m, slot_bytes=2**24).us) for m in (20, 24, 26, 28)]
        [31, 78, 232, 783]
    """
    memory = _Played(slot_bytes)
    channel = Channel(memory, size=2, position=0)
    begun = Moment(0.0, 0)
    for _ in range(3):
        begun = memory.queues[Queue.CALLER]
        _CALLS[name](channel, memory, received_bytes)
    end = memory.queues[Queue.CALLER]
    return Foretold(us=end.us - begun.us, driver_calls=memory.calls, hops=end.hops)


def _exchange(channel: Channel, memory: _Played, size: int) -> None:
    del memory
    blocks = in_turn([size, size])
    route = find_route(blocks, blocks, position=0, slot_bytes=channel.slot_bytes)
    channel.exchange("foretold", route, torch.empty(0), torch.empty(0))


def _sum(channel: Channel, memory: _Played, size: int) -> None:
    channel.add("foretold", _sum_route(channel, size), torch.empty(0), _adding(memory, _ADDED))


def _gradients(channel: Channel, memory: _Played, size: int) -> None:
    def make(piece: Piece, slot: Tensor) -> None:
        del slot
        memory.over_wire(memory.running, _KERNEL + piece.size / _STORES)

    add = _adding(memory, _GRADIENT)
    channel.add_made("foretold", _sum_route(channel, size), make, add)


def _sum_route(channel: Channel, size: int) -> Route:
    blocks = [Block(0, 0), Block(0, size)]
    return find_route(blocks, blocks, position=0, slot_bytes=channel.slot_bytes)


def _adding(memory: _Played, passes: int) -> Add:
    def add(piece: Piece, slots: dict[int, Tensor]) -> None:
        del slots
        memory.locally(memory.running, _KERNEL + passes * piece.size / _MEMORY)

    return add


_CALLS: Mapping[str, Callable[[Channel, _Played, int], None]] = {
    "all_gather": _exchange,
    "all_to_all": _exchange,
    "reduce_scatter": _sum,
    "gradients": _gradients,
}

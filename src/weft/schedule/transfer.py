"""What travels between the stages of a pipeline: when a rank posts a receive or a send, and waits.

    receive   posted one piece of work before the one that reads it, in the order of its sender
    arrive    right before that work
    send      right behind the work that makes it
    sent      before the next send to the same peer, the last ones at the end

Sends and receives know nothing of each other but their order on a link, so a rank that is late
delays only those who need what it makes. `check` plays all ranks against each other under the
strictest wire, where a send is not done before its receive is posted.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from weft.errors import DeadlockError
from weft.schedule.pipeline import Order, Pass, Pipeline, Work


class Verb(StrEnum):
    """What is done about a message."""

    RECEIVE = "receive"
    ARRIVE = "arrive"
    SEND = "send"
    SENT = "sent"


@dataclass(frozen=True, slots=True)
class Message:
    """What a pass over the virtual stage `stage` reads, of one micro-batch: activations (forward)
    or gradients (backward).
    """

    kind: Pass
    stage: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch} to stage {self.stage}"


@dataclass(frozen=True, slots=True)
class Move:
    """A verb, its message, and the rank at the other end."""

    verb: Verb
    message: Message
    peer: int


Piece = Work | Move
Link = tuple[int, int, Pass]  # sender, receiver, direction


def pieces(pipeline: Pipeline, orders: Sequence[Order], rank: int) -> tuple[Piece, ...]:
    """What a rank does, with the moves that feed it and take its results away."""
    return tuple(_Mover(pipeline, orders, rank).run())


def needs(pipeline: Pipeline, rank: int, work: Work) -> Message | None:
    """What a piece of work reads from another rank."""
    stage = pipeline.virtual_stage(rank, work.chunk)
    match work.kind:
        case Pass.FORWARD if stage > 0:
            return Message(work.kind, stage, work.micro_batch)
        case Pass.BACKWARD if stage < pipeline.virtual_stages - 1:
            return Message(work.kind, stage, work.micro_batch)
        case _:
            return None


def makes(pipeline: Pipeline, rank: int, work: Work) -> Message | None:
    """What a piece of work makes for another rank."""
    stage = pipeline.virtual_stage(rank, work.chunk)
    match work.kind:
        case Pass.FORWARD if stage < pipeline.virtual_stages - 1:
            return Message(work.kind, stage + 1, work.micro_batch)
        case Pass.BACKWARD if stage > 0:
            return Message(work.kind, stage - 1, work.micro_batch)
        case _:
            return None


def source(pipeline: Pipeline, message: Message) -> int:
    """The rank that makes a message."""
    back = -1 if message.kind is Pass.FORWARD else 1
    return (message.stage + back) % pipeline.stages


def target(pipeline: Pipeline, message: Message) -> int:
    """The rank that reads a message."""
    return message.stage % pipeline.stages


class _Mover:
    def __init__(self, pipeline: Pipeline, orders: Sequence[Order], rank: int) -> None:
        self.pipeline, self.rank = pipeline, rank
        self.order = orders[rank]
        self.needed = [needs(pipeline, rank, work) for work in self.order]
        self.coming: Mapping[Link, deque[Message]] = _coming(pipeline, orders, rank)
        self.posted: set[Message] = set()
        self.leaving: dict[Link, Move] = {}

    def run(self) -> Iterator[Piece]:
        for position, work in enumerate(self.order):
            for message in self.needed[position : position + 2]:
                yield from self._receive(message)
            message = self.needed[position]
            if message is not None:
                yield Move(Verb.ARRIVE, message, source(self.pipeline, message))
            yield work
            yield from self._send(makes(self.pipeline, self.rank, work))
        for move in self.leaving.values():
            yield Move(Verb.SENT, move.message, move.peer)

    def _receive(self, message: Message | None) -> Iterator[Move]:
        """Posts a receive, and before it what its sender sends before."""
        if message is None:
            return
        peer = source(self.pipeline, message)
        queue = self.coming[peer, self.rank, message.kind]
        while message not in self.posted:
            first = queue.popleft()
            self.posted.add(first)
            yield Move(Verb.RECEIVE, first, peer)

    def _send(self, message: Message | None) -> Iterator[Move]:
        if message is None:
            return
        peer = target(self.pipeline, message)
        link = (self.rank, peer, message.kind)
        if link in self.leaving:
            yield Move(Verb.SENT, self.leaving[link].message, peer)
        self.leaving[link] = Move(Verb.SEND, message, peer)
        yield self.leaving[link]


def _coming(
    pipeline: Pipeline, orders: Sequence[Order], rank: int
) -> Mapping[Link, deque[Message]]:
    """What reaches a rank on each link, in the order in which it is sent."""
    coming: dict[Link, deque[Message]] = {}
    for sender, order in enumerate(orders):
        for work in order:
            message = makes(pipeline, sender, work)
            if message is not None and target(pipeline, message) == rank:
                coming.setdefault((sender, rank, message.kind), deque()).append(message)
    return coming


def check(ranks: Sequence[Sequence[Piece]]) -> None:
    """Returns if every rank comes to its end, whatever the wire buffers.

    Raises:
        DeadlockError: no rank can advance; each is named with what it waits for.
    """
    position = [0] * len(ranks)
    links: dict[Link, _Traffic] = {}
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(ranks):
            while position[rank] < len(row) and _goes(rank, row[position[rank]], links):
                position[rank] += 1
                moved = True
    stuck = [
        f"rank {rank} waits for {_text(row[position[rank]])}"
        for rank, row in enumerate(ranks)
        if position[rank] < len(row)
    ]
    if stuck:
        raise DeadlockError(f"the pipeline stands still: {', '.join(stuck)}")


@dataclass(frozen=True, slots=True)
class _Traffic:
    """The messages of a link so far, each with its place among those sent, and those received."""

    sent: dict[Message, int] = field(default_factory=dict[Message, int])
    received: dict[Message, int] = field(default_factory=dict[Message, int])


def _goes(rank: int, piece: Piece, links: dict[Link, _Traffic]) -> bool:
    """Whether a rank can go on: work can, a post does, a wait where the i-th send is met by the
    i-th receive.
    """
    if isinstance(piece, Work):
        return True
    traffic = links.setdefault(_link(rank, piece), _Traffic())
    match piece.verb:
        case Verb.SEND:
            traffic.sent[piece.message] = len(traffic.sent)
        case Verb.RECEIVE:
            traffic.received[piece.message] = len(traffic.received)
        case Verb.ARRIVE | Verb.SENT:
            place = traffic.sent.get(piece.message)
            return place is not None and place == traffic.received.get(piece.message)
    return True


def _link(rank: int, move: Move) -> Link:
    outward = move.verb in (Verb.SEND, Verb.SENT)
    ends = (rank, move.peer) if outward else (move.peer, rank)
    return (*ends, move.message.kind)


def _text(piece: Piece) -> str:
    if isinstance(piece, Work):
        return str(piece)
    return f"{piece.verb} of {piece.message}"

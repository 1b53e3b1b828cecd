"""All ranks of a mesh in one process: the meaning of every collective, as algebra over lists.

Each rank posts its part and gets a handle; a collective completes when every member of its group
has posted, and only then. The i-th call of a group on one member meets the i-th call on every
other, as on a wire, but here a mismatch is an error that names both calls, where a real wire would
cross the data silently.

    inputs x[0..n-1], one a member              outputs y[0..n-1]
    all_to_all, rows     y[i] = join_j  split(x[j], send[j])[i]
    all_gather           y[i] = join_j  x[j]
    reduce_scatter       y[i] = sum_j   split(x[j], n equal)[i]        in rank order
    all_to_all_sum       the same of x[j] rounded
    all_reduce           y[i] = sum_j   x[j]                           in rank order
    send, receive        y[receiver] = x[sender]                       a meeting of two
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from weft.comm.call import Call, Collective, sum_in_rank_order
from weft.comm.handle import Handle
from weft.comm.mesh import Group, Mesh, memberships
from weft.comm.transport import Transport
from weft.errors import CommunicationError


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """A collective that cannot complete yet: who has posted, who is missing."""

    axis: str
    lane: str
    sequence: int
    call: Call
    posted: Group
    missing: Group

    def __str__(self) -> str:
        return (
            f"axis {self.axis} lane {self.lane} call {self.sequence}: {self.call} "
            f"posted by ranks {list(self.posted)}, missing ranks {list(self.missing)}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What one member brought, and where its result goes."""

    call: Call
    x: Tensor
    out: Tensor


@dataclass(kw_only=True, slots=True)
class _Meeting:
    """One collective of one group, from the first member's call to the last's."""

    ranks: Group
    sequence: int
    parts: dict[int, _Part] = field(default_factory=dict)
    complete: bool = False

    def describe(self) -> Pending:
        call = next(iter(self.parts.values())).call
        return Pending(
            axis=call.axis,
            lane=call.lane,
            sequence=self.sequence,
            call=call,
            posted=tuple(r for r in self.ranks if r in self.parts),
            missing=tuple(r for r in self.ranks if r not in self.parts),
        )


@final
class StackedWorld:
    """Every rank of a mesh in this process, and the collectives that wait for members."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._posted: Counter[tuple[str, str, Group, int]] = Counter()  # axis, lane, members, rank
        self._meetings: dict[tuple[str, str, Group, int], _Meeting] = {}

    def transport(self, rank: int) -> "StackedTransport":
        """The transport of one rank."""
        return StackedTransport(self, rank)

    def pending(self) -> tuple[Pending, ...]:
        """The collectives that some members have posted and others have not, oldest first."""
        return tuple(meeting.describe() for meeting in self._meetings.values())

    def post(self, rank: int, ranks: Group, part: _Part) -> _Meeting:
        """Adds one member's part to the collective it belongs to, and completes that when it is
        the last.

        Raises:
            CommunicationError: another member has posted a different call in this place.
        """
        call = part.call
        sequence = self._posted[call.axis, call.lane, ranks, rank]
        key = (call.axis, call.lane, ranks, sequence)
        meeting = self._meetings.setdefault(key, _Meeting(ranks=ranks, sequence=sequence))
        _check_agreement(meeting, rank, call)
        self._posted[call.axis, call.lane, ranks, rank] += 1
        meeting.parts[rank] = part
        if len(meeting.parts) == len(ranks):
            _complete([meeting.parts[member] for member in ranks])
            meeting.parts.clear()
            meeting.complete = True
            del self._meetings[key]
        return meeting


@final
class StackedTransport(Transport):
    """One rank of a stacked world."""

    def __init__(self, world: StackedWorld, rank: int) -> None:
        self._world = world
        self._rank = rank
        self._members = memberships(world.mesh, rank)

    def group_size(self, axis: str) -> int:
        return len(self._members[axis].ranks)

    def group_rank(self, axis: str) -> int:
        return self._members[axis].position

    def barrier(self) -> None:
        """Does nothing: one process is in step with itself."""

    def close(self) -> None:
        """Does nothing: nothing was opened."""

    def exposed_seconds(self) -> float:
        return 0.0

    def reset_exposed(self) -> None:
        return

    def describe(self) -> str:
        return "one process"

    def sums_on_arrival(self) -> bool:
        return False

    def post(self, call: Call, x: Tensor, out: Tensor) -> Handle:
        ranks = _meeting_of(call, self._rank, self._members[call.axis].ranks)
        return _Awaited(self._world.post(self._rank, ranks, _Part(call=call, x=x, out=out)), out)


def _meeting_of(call: Call, rank: int, ranks: Group) -> Group:
    """Who takes part: all members, or the sender and the receiver of a message, in that order."""
    match call.collective:
        case Collective.SEND:
            return (rank, ranks[call.peer])
        case Collective.RECEIVE:
            return (ranks[call.peer], rank)
        case _:
            return ranks


@final
class _Awaited(Handle):
    """One member's view of a meeting."""

    def __init__(self, meeting: _Meeting, out: Tensor) -> None:
        self._meeting = meeting
        self._out = out

    def ready(self) -> bool:
        return self._meeting.complete

    def wait(self) -> Tensor:
        if not self._meeting.complete:
            raise CommunicationError(
                f"waited for a collective that is incomplete: {self._meeting.describe()}; "
                "let the missing ranks advance first"
            )
        return self._out


def _check_agreement(meeting: _Meeting, rank: int, call: Call) -> None:
    for other, part in meeting.parts.items():
        positions = (meeting.ranks.index(other), meeting.ranks.index(rank))
        if not _agree(part.call, call, positions):
            raise CommunicationError(
                f"call {meeting.sequence} of axis {call.axis} lane {call.lane} differs between its "
                f"members: rank {other} posted {part.call}, rank {rank} posted {call}; "
                "every member of a group must issue the same collectives in the same order"
            )


def _agree(one: Call, other: Call, positions: tuple[int, int]) -> bool:
    if one.is_message and other.is_message:
        return (one.label, one.dtype, one.shape) == (other.label, other.dtype, other.shape)
    if (one.collective, one.label, one.dtype) != (other.collective, other.label, other.dtype):
        return False
    if one.collective is not Collective.ALL_TO_ALL_ROWS:
        return one.shape == other.shape
    here, there = positions
    return (
        one.shape[1:] == other.shape[1:]
        and one.send[there] == other.receive[here]
        and other.send[here] == one.receive[there]
    )


def _complete(parts: list[_Part]) -> None:
    """Computes the results of one collective, list in, list out."""
    inputs = [part.x for part in parts]
    outputs = [part.out for part in parts]
    match parts[0].call.collective:
        case Collective.ALL_TO_ALL:
            sends = [_equal_blocks(x, len(parts)) for x in inputs]
            _exchange(inputs, outputs, sends, sends)
        case Collective.ALL_TO_ALL_ROWS:
            _exchange(
                inputs,
                outputs,
                [part.call.send for part in parts],
                [part.call.receive for part in parts],
            )
        case Collective.ALL_GATHER:
            for out in outputs:
                for block, x in zip(out.split([x.shape[0] for x in inputs]), inputs, strict=True):
                    block.copy_(x)
        case Collective.REDUCE_SCATTER:
            blocks = [x.split(_equal_blocks(x, len(parts))) for x in inputs]
            for position, out in enumerate(outputs):
                sum_in_rank_order([block[position] for block in blocks], out)
        case Collective.ALL_TO_ALL_SUM:
            # copied, since a sum may take the place of one of its terms
            rounded = [x.to(parts[0].call.dtype, copy=True) for x in inputs]
            blocks = [x.split(_equal_blocks(x, len(parts))) for x in rounded]
            for position, out in enumerate(outputs):
                sum_in_rank_order([block[position] for block in blocks], out)
        case Collective.ALL_REDUCE:
            for out in outputs:
                sum_in_rank_order(inputs, out)
        case Collective.SEND | Collective.RECEIVE:
            sent, received = inputs[0], outputs[1]
            received.copy_(sent)


def _exchange(
    inputs: list[Tensor],
    outputs: list[Tensor],
    sends: list[tuple[int, ...]],
    receives: list[tuple[int, ...]],
) -> None:
    blocks = [x.split(send) for x, send in zip(inputs, sends, strict=True)]
    for position, (out, receive) in enumerate(zip(outputs, receives, strict=True)):
        for source, destination in zip(blocks, out.split(receive), strict=True):
            destination.copy_(source[position])


def _equal_blocks(x: Tensor, n: int) -> tuple[int, ...]:
    return (x.shape[0] // n,) * n

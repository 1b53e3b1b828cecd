"""A pipeline on paper: every piece of work of every rank at its time, drawn, and its bubble.

    rank 0  F0 F1 F2 F3 .  .  .  B0 = ...        F forward, B backward, W weight gradient,
    rank 1  .  F0 F1 F2 .  .  B0 = F3 ...        the number its micro-batch, .1 its chunk,
                                                 = goes on, . stands still

Times are units: F 1, B 2 with its weight gradients or 1 without, W 1, unless a caller prices them.
What a message takes on the wire is `hop`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weft.errors import DeadlockError
from weft.schedule.pipeline import Order, Pass, Pipeline, Work
from weft.schedule.transfer import needs, source

WIDTH = 100
_MARGIN = 9  # of the names of ranks

Cost = Callable[[int, Work], float]  # rank, work -> time


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One piece of work at its time."""

    rank: int
    work: Work
    start: float
    stop: float


def units(pipeline: Pipeline) -> Cost:
    """One for each of forward, input gradients and weight gradients."""
    backward = 1.0 if pipeline.defers_weights else 2.0
    return lambda _, work: backward if work.kind is Pass.BACKWARD else 1.0


def simulate(
    pipeline: Pipeline, orders: Sequence[Order], cost: Cost, *, hop: float = 0.0
) -> tuple[Slot, ...]:
    """Every piece at the earliest time that its order and what it reads allow.

    Raises:
        DeadlockError: no rank can advance.
    """
    stop: dict[tuple[int, Work], float] = {}
    slots: list[Slot] = []
    position, now = [0] * len(orders), [0.0] * len(orders)
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(orders):
            while position[rank] < len(order):
                work = order[position[rank]]
                ready = _ready(pipeline, rank, work, stop, hop)
                if ready is None:
                    break
                start = max(now[rank], ready)
                now[rank] = stop[rank, work] = start + cost(rank, work)
                slots.append(Slot(rank=rank, work=work, start=start, stop=now[rank]))
                position[rank] += 1
                moved = True
    stuck = [f"rank {r} at {o[position[r]]}" for r, o in enumerate(orders) if position[r] < len(o)]
    if stuck:
        raise DeadlockError(f"the pipeline stands still: {', '.join(stuck)}")
    return tuple(slots)


def _ready(
    pipeline: Pipeline, rank: int, work: Work, stop: Mapping[tuple[int, Work], float], hop: float
) -> float | None:
    """When what a piece reads is there; None while it is not made."""
    message = needs(pipeline, rank, work)
    if message is not None:
        sender = source(pipeline, message)
        back = -1 if work.kind is Pass.FORWARD else 1
        chunk = (message.stage + back) // pipeline.stages
        made = stop.get((sender, Work(work.kind, chunk, work.micro_batch)))
        if made is None:
            return None
        there = made + hop
    else:
        there = 0.0
    own = {Pass.FORWARD: None, Pass.BACKWARD: Pass.FORWARD, Pass.WEIGHT: Pass.BACKWARD}[work.kind]
    if own is None:
        return there
    before = stop.get((rank, Work(own, work.chunk, work.micro_batch)))
    return None if before is None else max(there, before)


def bubble(slots: Sequence[Slot]) -> float:
    """The share of the ranks' time in which they stand still."""
    ranks = 1 + max(slot.rank for slot in slots)
    whole = ranks * max(slot.stop for slot in slots)
    return 1 - sum(slot.stop - slot.start for slot in slots) / whole


def most_alive(order: Order) -> int:
    """The most micro-batches of chunks whose activations a rank holds at once."""
    alive, most = 0, 0
    last = Pass.WEIGHT if any(w.kind is Pass.WEIGHT for w in order) else Pass.BACKWARD
    for work in order:
        alive += (work.kind is Pass.FORWARD) - (work.kind is last)
        most = max(most, alive)
    return most


def render(pipeline: Pipeline, slots: Sequence[Slot], *, columns: int = 0) -> str:
    """The ranks over time, a cell a unit (or `columns` cells in all, for times of any length), in
    as many blocks as a line has no room for.
    """
    total = max(slot.stop for slot in slots)
    scale = columns / total if columns else 1.0
    cell = max(len(str(slot.work)) for slot in slots) + 1
    rows = [_cells(slots, rank, scale, round(total * scale)) for rank in range(pipeline.stages)]
    across = (WIDTH - _MARGIN) // cell
    lines = [_title(pipeline, slots)]
    for first in range(0, len(rows[0]), across):
        lines.append("")
        for rank, row in enumerate(rows):
            drawn = "".join(f"{text:<{cell}}" for text in row[first : first + across])
            lines.append(f"rank {rank:<{_MARGIN - 5}}{drawn}".rstrip())
    return "\n".join([*lines, "", _held(pipeline, slots)])


def _cells(slots: Sequence[Slot], rank: int, scale: float, count: int) -> list[str]:
    cells = ["."] * count
    for slot in slots:
        first, last = round(slot.start * scale), round(slot.stop * scale)
        if slot.rank == rank:  # what is too short for a cell has one all the same
            first, last = min(first, count - 1), max(last, first + 1)
            cells[first:last] = [str(slot.work), *"=" * (last - first - 1)]
    return cells


def _held(pipeline: Pipeline, slots: Sequence[Slot]) -> str:
    """How many forwards' activations each rank holds at most."""
    orders = [tuple(s.work for s in slots if s.rank == rank) for rank in range(pipeline.stages)]
    return f"activations held at most: {' '.join(str(most_alive(order)) for order in orders)}"


def _title(pipeline: Pipeline, slots: Sequence[Slot]) -> str:
    chunks = f" of {pipeline.chunks} chunks" if pipeline.chunks > 1 else ""
    return (
        f"{pipeline.order}: {pipeline.stages} stages{chunks}, {pipeline.micro_batches} "
        f"micro-batches; bubble {100 * bubble(slots):.1f} %"
    )

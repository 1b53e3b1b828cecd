"""When every stage of a pipeline works, however many micro-batches there are.

The orders are those of `schedule.pipeline`, the times those of `schedule.stages`. Once a pipeline
is full each further round of as many micro-batches as stages takes the same time, so two short
runs, a round apart, say how long a long one takes: its middle is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from weft.schedule.pipeline import Pass, Pipeline, order_of
from weft.schedule.stages import Cost, Slot, simulate

FULL = 2  # rounds: in the first the pipeline fills, in the last it drains


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A pipeline from the first forward to the last backward.

    `slots` may leave out micro-batches in the middle; their times are right for the end.
    """

    slots: Sequence[Slot]
    seconds: float

    def last(self, rank: int, chunk: int) -> float:
        """When a chunk of a rank is through with its last backward."""
        return max(
            slot.stop
            for slot in self.slots
            if slot.rank == rank and slot.work.chunk == chunk and slot.work.kind is not Pass.FORWARD
        )


def run(pipeline: Pipeline, cost: Cost, *, hop: float = 0.0) -> Run:
    """Every piece of every rank at its time; `hop` is a message between neighbours."""
    stages = pipeline.stages
    short = FULL * stages + pipeline.micro_batches % stages
    if pipeline.micro_batches <= short + stages:
        return _whole(pipeline, cost, hop)
    one = _whole(replace(pipeline, micro_batches=short), cost, hop)
    two = _whole(replace(pipeline, micro_batches=short + stages), cost, hop)
    rounds = (pipeline.micro_batches - short - stages) // stages
    cut = rounds * (two.seconds - one.seconds)
    late = [replace(slot, start=slot.start + cut, stop=slot.stop + cut) for slot in two.slots]
    return Run(slots=late, seconds=two.seconds + cut)


def _whole(pipeline: Pipeline, cost: Cost, hop: float) -> Run:
    orders = [order_of(pipeline, rank) for rank in range(pipeline.stages)]
    slots = simulate(pipeline, orders, cost, hop=hop)
    return Run(slots=slots, seconds=max(slot.stop for slot in slots))


def in_flight(pipeline: Pipeline, rank: int) -> int:
    """The most chunks times micro-batches whose activations a rank holds at once.

    Example:
        >>> in_flight(Pipeline(stages=4, micro_batches=8), 0)
        4
    """
    most = held = 0
    for work in order_of(pipeline, rank):
        match work.kind:
            case Pass.FORWARD:
                held += 1
            case Pass.BACKWARD:
                held -= 1
            case Pass.WEIGHT:
                pass
        most = max(most, held)
    return most

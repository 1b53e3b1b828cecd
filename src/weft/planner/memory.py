"""What a rank holds at its fullest moment, by part, in bytes.

    weights        parameters in the compute dtype
    gradients      sums in the accumulation dtype
    optimizer      master weights and two moments of this rank's shards
    activations    what forwards keep for their backwards, for every chunk in flight, less what the
                   backward at that moment has freed of it
    dispatch       routed rows and gathered tokens alive at once inside one segment
    workspace      everything else alive at that moment

Sizes come from the programs, lifetimes from the frees of their orders, chunks in flight from the
order of the pipeline: nothing here repeats a formula. Views are counted with what they look at.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from weft.compose.plan import Plan, sizes
from weft.compose.price import BYTES, value_bytes
from weft.compose.replicas import is_end
from weft.compose.stage import chunks_of
from weft.compose.step import Step
from weft.graph.dims import Sizes, letters
from weft.graph.program import Program
from weft.parallel.zero import gradient_elements
from weft.planner.cost import imbalanced
from weft.planner.pipeline import in_flight
from weft.planner.work import VIEWS
from weft.schedule.action import Free, Ordered, Post, Run

ROUTED = frozenset("RUO")  # letters of what dispatch brings
STATES = 3  # of AdamW: master weight, mean, square


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes by part."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    dispatch: int
    workspace: int

    @property
    def all(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())

    @property
    def parts(self) -> Mapping[str, int]:
        """Bytes by name of the part."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def memory(step: Step, plan: Plan, *, imbalance: float = 1.0) -> Memory:
    """The parts of one rank: `step` has its templates, `plan` its micro-batches."""
    n = _with_room(imbalanced(sizes(plan), imbalance), plan.bounded_rows)
    elements = sum(bucket.numel for bucket in step.buckets)
    shards = sum(bucket.shard for bucket in step.buckets)
    segments = [ordered for name, ordered in step.templates.items() if not is_end(name)]
    kept = frozenset({"x"}.union(*(ordered.program.kept for ordered in segments)))
    peaks = [_peak(ordered, n, kept) for ordered in segments]
    most = max(peaks, key=_Moment.total)
    return Memory(
        weights=elements * BYTES["act"],
        gradients=gradient_elements(step.buckets, zero=plan.sync.zero) * BYTES["acc"],
        optimizer=STATES * shards * BYTES["acc"],
        activations=_kept(step, plan, n) - most.given_back,
        dispatch=most.dispatch,
        workspace=most.workspace,
    )


def _with_room(n: Sizes, rows: int) -> Sizes:
    """Rows take what there is room for, if that is fixed, and else as much as they are."""
    return replace(n, numbers={**n.numbers, "R": rows}) if rows else n


def kept_bytes(program: Program, n: Sizes) -> int:
    """What one forward leaves for its backward, its input among it."""
    return sum(value_bytes(name, program, n, BYTES) for name in {"x", *program.kept})


def _kept(step: Step, plan: Plan, n: Sizes) -> int:
    """Of the fullest chunk, times the chunks in flight."""
    shape = plan.shape
    forwards = {name: ordered.program for name, ordered in step.templates.items()}
    chunks = [
        sum(kept_bytes(forwards[f"{shape.kind(i)}.forward"], n) for i in chunk.layers)
        for chunk in chunks_of(plan)
    ]
    return max(chunks) * in_flight(plan.schedule, plan.layout.pp_rank(plan.rank))


class _Moment(NamedTuple):
    """What a segment holds at some time beside what layers keep, and what of that it has freed."""

    dispatch: int
    workspace: int
    given_back: int

    def total(self) -> int:
        return self.dispatch + self.workspace - self.given_back


def _peak(ordered: Ordered, n: Sizes, kept: AbstractSet[str]) -> _Moment:
    """The moment of a segment at which most is held. A backward gives back what its layer kept as
    it goes, by the names that forwards keep it under.
    """
    program = ordered.program
    lasting = {*program.kept, *program.outputs}
    live: dict[str, int] = {}
    given_back = 0
    most = _Moment(0, 0, 0)
    for action in ordered.actions:
        match action:
            case Run(task) | Post(task):
                if task.body not in VIEWS:
                    made = (v for v in task.outputs if v not in lasting)
                    live.update({v: value_bytes(v, program, n, BYTES) for v in made})
                now = _Moment(*_split(live, program), given_back)
                most = max(most, now, key=_Moment.total)
            case Free(value) if value in live:
                live.pop(value)
            case Free(value) if value in program.inputs and value in kept:
                given_back += value_bytes(value, program, n, BYTES)
            case _:
                pass
    return most


def _split(live: Mapping[str, int], program: Program) -> tuple[int, int]:
    routed = sum(
        size for name, size in live.items() if ROUTED & set(letters(program.values[name].dims))
    )
    return routed, sum(live.values()) - routed

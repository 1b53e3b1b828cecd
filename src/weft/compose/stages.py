"""A pipeline's step at given prices: how long each piece of work takes, and when it is done.

The seconds of a piece are those of its segments after one another, each on its lanes; a message
takes its price as a hop. What is received and sent beside that, and the update, are not in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from weft.compose.first import first_of
from weft.compose.plan import Plan, sizes
from weft.compose.price import Pricing
from weft.compose.stage import chunks_of
from weft.compose.step import Step, training_step
from weft.compose.work import Parts, instances_of
from weft.schedule.pipeline import Order, Work, order_of
from weft.schedule.render import place
from weft.schedule.stages import Slot, simulate


@dataclass(frozen=True, kw_only=True, slots=True)
class Priced:
    """One stage's step: the seconds of its templates, and what its pieces of work are made of."""

    parts: Parts
    seconds: Mapping[str, float]

    def costs(self, order: Order) -> Mapping[Work, float]:
        """The seconds of each piece of work; those of all micro-batches but the first are alike."""
        alike = {Work(work.kind, work.chunk, 1) for work in order}
        later = {work: self._names(work) for work in alike}
        first = {
            replace(work, micro_batch=0): [first_of(name, self.seconds) for name in names]
            for work, names in later.items()
        }
        seconds = {
            work: sum(self.seconds[name] for name in names)
            for work, names in {**first, **later}.items()
        }
        return {
            work: seconds[replace(work, micro_batch=min(work.micro_batch, 1))] for work in order
        }

    def _names(self, work: Work) -> list[str]:
        return [instance.template for instance in instances_of(self.parts, work)]


def price_stages(plan: Plan, pricing: Pricing) -> tuple[Priced, ...]:
    """The first rank of every stage; the others of a stage are like it at balanced routing."""
    ranks = range(0, plan.layout.world, plan.layout.stage)
    return tuple(_priced(training_step(replace(plan, rank=rank)), pricing) for rank in ranks)


def slots_of(plan: Plan, pricing: Pricing) -> tuple[Slot, ...]:
    """Every piece of work of a step on every stage, in seconds."""
    pipeline, stages = plan.schedule, price_stages(plan, pricing)
    orders: Sequence[Order] = [order_of(pipeline, rank) for rank in range(pipeline.stages)]
    hops = [s for stage in stages for n, s in stage.seconds.items() if n.startswith("receive")]
    costs = [stage.costs(order) for stage, order in zip(stages, orders, strict=True)]
    hop = max(hops, default=0.0)
    return simulate(pipeline, orders, lambda rank, work: costs[rank][work], hop=hop)


def _priced(step: Step, pricing: Pricing) -> Priced:
    n = sizes(step.plan)
    programs = {name: ordered.program for name, ordered in step.templates.items()}
    seconds: dict[str, float] = {}
    for name, ordered in step.templates.items():
        line = place(ordered, lambda task, program=ordered.program: pricing(task, program, n))
        seconds[name] = max((line.seconds, *(bar.stop for bar in line.bars)))
    parts = Parts(shape=step.plan.shape, programs=programs, chunks=chunks_of(step.plan))
    return Priced(parts=parts, seconds=seconds)

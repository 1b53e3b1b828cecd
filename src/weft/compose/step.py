"""The schedule of one training step: templates, and their instances in the order of a rank.

    for each piece of work, in the order of the rank's pipeline: its instances (`compose.work`),
    and around it what is received and sent (`compose.edge`)
    then: update

One stage runs the forward and the backward of a micro-batch after one another. The first addition
to a gradient writes it (`compose.first`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from weft.compose import edge, replicas, segment, split, stage, templates, work
from weft.compose.check import check_edges
from weft.compose.first import Zeroed, begun
from weft.compose.instance import Instance, with_drops
from weft.compose.order import Order as Order
from weft.compose.order import named_order as named_order
from weft.compose.plan import Plan, validate, without_bound, without_limit
from weft.compose.sums import check_sums
from weft.compose.weave import woven
from weft.graph.program import Program
from weft.model.families import Kind
from weft.model.params import Parameter
from weft.parallel.pipeline import spans
from weft.parallel.zero import Bucket, buckets
from weft.schedule.action import Ordered
from weft.schedule.check import check
from weft.schedule.transfer import Move, Piece


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A checked schedule of one rank: what the executor runs and the planner prices.

    `zeroed` are the elements of each memory of gradients that it does not write before it adds.
    """

    plan: Plan
    parameters: tuple[Parameter, ...]
    buckets: tuple[Bucket, ...]
    templates: Mapping[str, Ordered]
    instances: tuple[Instance, ...]
    results: tuple[str, ...]
    zeroed: Zeroed


def training_step(plan: Plan, order: Order | None = None, *, record_routing: bool = False) -> Step:
    """The whole step of one rank; `record_routing` adds every token's choices to its results."""
    stage.validate(split.validate(validate(plan)))
    programs = templates.training_programs(plan)
    pieces = stage.pieces_of(plan)
    flat = owned_parameters(plan)[1]
    woven = replicas.weave(plan, _instances(plan, programs, pieces), flat)
    programs.update(woven.programs)
    programs["update"] = segment.update(plan, flat)
    instances = [*woven.instances, work.update(programs["update"])]
    results = ("stats", "verdict", *(_choices(plan) if record_routing else ()))
    return _checked(plan, programs, instances, results, order)


def evaluation_step(plan: Plan, order: Order | None = None) -> Step:
    """The forward of one micro-batch, its loss added to the statistics; nothing is dropped."""
    plan = replace(without_bound(without_limit(plan)), replay=False)
    programs = templates.evaluation_programs(plan)
    instances = _instances(plan, programs, stage.forward_pieces_of(plan))
    return _checked(plan, programs, instances, (), order)


def gathering_step(plan: Plan, order: Order | None = None) -> Step:
    """Every parameter brought up to date with the master weights of its owners."""
    program = segment.gather(plan, owned_parameters(plan)[1])
    return _checked(plan, {program.name: program}, [work.gather(program)], (), order)


def owned_parameters(plan: Plan) -> tuple[tuple[Parameter, ...], tuple[Bucket, ...]]:
    """What this rank holds: its parameters, and the flat buckets they lie in."""
    owned = stage.owned(plan)
    return owned, buckets(owned, plan.layout, most=plan.sync.bucket, zero=plan.sync.zero)


def _instances(plan: Plan, programs: dict[str, Program], pieces: Sequence[Piece]) -> list[Instance]:
    """The instances of a rank's pieces; the programs of its edges join the others."""
    parts = work.Parts(shape=plan.shape, programs=programs, chunks=stage.chunks_of(plan))
    programs.update(edge.edge_programs(plan, (p for p in pieces if isinstance(p, Move))))
    layers = spans(stage.layer_counts(plan))
    found: list[Instance] = []
    for piece in pieces:
        if isinstance(piece, Move):
            found.append(edge.edge_instance(layers, programs[edge.name(piece)], piece))
        else:
            found += work.instances_of(parts, piece)
    return found


def _checked(
    plan: Plan,
    programs: Mapping[str, Program],
    instances: Sequence[Instance],
    results: tuple[str, ...],
    order: Order | None,
) -> Step:
    order = order or named_order(plan)
    owned, flat = owned_parameters(plan)
    fabric = woven(plan, programs, instances)
    ordered = {name: check(order(program)) for name, program in fabric.programs.items()}
    made = begun(ordered, with_drops(fabric.instances, keep=results), flat)
    used = {name: one.program for name, one in made.templates.items()}
    return Step(
        plan=plan,
        parameters=owned,
        buckets=flat,
        templates=made.templates,
        instances=check_sums(
            check_edges(made.instances, used, flat), used, flat, zeroed=made.zeroed
        ),
        results=results,
        zeroed=made.zeroed,
    )


def _choices(plan: Plan) -> Iterable[str]:
    """The keys under which each routed layer of this rank leaves its choices."""
    mine = (i for chunk in stage.chunks_of(plan) for i in chunk.layers)
    routed = [i for i in mine if plan.shape.kind(i) is not Kind.DENSE]
    return (f"m{m}.experts.{i}" for m in range(plan.local_micro_batches) for i in routed)

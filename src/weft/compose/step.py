"""The schedule of one training step: templates, and their instances in the order of a rank.

for each micro-batch: embedding, layers, head, layers backwards, embedding backwards
then: update
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from weft.compose import segment
from weft.compose.check import check_edges
from weft.compose.instance import Instance, instance_of, with_drops
from weft.compose.keep import rematerialised
from weft.compose.plan import Plan, sizes, validate
from weft.compose.price import Pricing, nominal_pricing
from weft.graph.program import Program
from weft.model.families import Kind, Shape
from weft.model.params import Parameter, parameters
from weft.parallel.zero import Bucket, buckets
from weft.schedule.action import Ordered
from weft.schedule.check import check
from weft.schedule.layer import overlapped, serial

Order = Callable[[Program], Ordered]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A checked schedule of one rank: what the executor runs and the planner prices."""

    plan: Plan
    parameters: tuple[Parameter, ...]
    buckets: tuple[Bucket, ...]
    templates: Mapping[str, Ordered]
    instances: tuple[Instance, ...]
    results: tuple[str, ...]


def training_step(plan: Plan, order: Order | None = None, *, record_routing: bool = False) -> Step:
    """The whole step of one rank; `record_routing` adds every token's choices to its results."""
    order = order or named_order(validate(plan))
    owned, flat = owned_parameters(plan)
    weights = layer_weights(owned)
    embedding = segment.embedding(plan)
    head = segment.head(plan, _head_name(plan))
    plain = {kind: segment.layer(plan, kind, names) for kind, names in weights.items()}
    layers = rematerialised(plan, plain)
    programs = {"embedding.forward": embedding.forward, "head": head.forward}
    programs["update"] = segment.update(plan, flat)
    for kind, derived in layers.items():
        programs[f"{kind}.forward"] = derived.forward
        programs[f"{kind}.backward"] = _present(derived.backward)
    programs["embedding.backward"] = _present(embedding.backward)
    instances: list[Instance] = []
    for m in range(plan.local_micro_batches):
        instances += _micro_batch(plan.shape, programs, m)
    instances.append(_update(programs["update"]))
    results = ("stats", "verdict", *(_choices(plan) if record_routing else ()))
    return Step(
        plan=plan,
        parameters=owned,
        buckets=flat,
        templates={name: check(order(program)) for name, program in programs.items()},
        instances=check_edges(with_drops(instances, keep=results), programs, flat),
        results=results,
    )


def evaluation_step(plan: Plan, order: Order | None = None) -> Step:
    """The forward of one micro-batch, its loss added to the statistics."""
    plan = replace(plan, replay=False)
    order = order or named_order(plan)
    owned, flat = owned_parameters(plan)
    programs = {"embedding.forward": segment.embedding(plan).forward}
    for kind, names in layer_weights(owned).items():
        programs[f"{kind}.forward"] = segment.layer(plan, kind, names, evaluate=True).forward
    programs["head.evaluate"] = segment.head(plan, _head_name(plan), evaluate=True).forward
    shape = plan.shape
    instances = [_embedding(programs["embedding.forward"], 0)]
    instances += [
        _forward(programs[f"{shape.kind(i)}.forward"], i, 0, shape) for i in range(shape.layers)
    ]
    instances.append(_head(programs["head.evaluate"], 0, shape))
    return Step(
        plan=plan,
        parameters=owned,
        buckets=flat,
        templates={name: check(order(program)) for name, program in programs.items()},
        instances=check_edges(with_drops(instances, keep=()), programs, flat),
        results=(),
    )


def _choices(plan: Plan) -> Iterable[str]:
    """The keys under which each routed layer leaves its choices."""
    routed = [i for i in range(plan.shape.layers) if plan.shape.kind(i) is not Kind.DENSE]
    return (f"m{m}.experts.{i}" for m in range(plan.local_micro_batches) for i in routed)


def owned_parameters(plan: Plan) -> tuple[tuple[Parameter, ...], tuple[Bucket, ...]]:
    """What this rank holds: its parameters, and the flat buckets they lie in."""
    layout = plan.layout
    owned = parameters(plan.shape, ep=layout.ep, ep_rank=layout.ep_rank(plan.rank))
    return owned, buckets(owned, {"dense": layout.degree("dense"), "edp": layout.degree("edp")})


def named_order(plan: Plan, pricing: Pricing | None = None) -> Order:
    """The order a recipe names, at the prices of a machine, or at nominal ones."""
    match plan.order:
        case "serial":
            return serial
        case "overlapped":
            return partial(_overlapped, plan=plan, pricing=pricing or nominal_pricing())
        case _:
            raise AssertionError(f"{plan.order=}")


def _overlapped(program: Program, *, plan: Plan, pricing: Pricing) -> Ordered:
    n = sizes(plan)
    return overlapped(program, lambda task: pricing(task, program, n))


def layer_weights(owned: Sequence[Parameter]) -> dict[Kind, list[str]]:
    """Short names of the parameters of each kind of layer present."""
    names: dict[Kind, dict[str, None]] = {}
    for parameter in owned:
        if parameter.kind is not None:
            names.setdefault(parameter.kind, {})[segment.short(parameter)] = None
    return {kind: list(found) for kind, found in names.items()}


def _head_name(plan: Plan) -> str:
    return "embed" if plan.shape.tied else "head"


def _present(program: Program | None) -> Program:
    assert program is not None
    return program


# ---- instances -----------------------------------------------------------------------------------


def _micro_batch(shape: Shape, programs: Mapping[str, Program], m: int) -> Iterable[Instance]:
    depths = range(shape.layers)
    yield _embedding(programs["embedding.forward"], m)
    for i in depths:
        yield _forward(programs[f"{shape.kind(i)}.forward"], i, m, shape)
    yield _head(programs["head"], m, shape)
    for i in reversed(depths):
        yield _backward(programs, i, m, shape)
    backward = programs["embedding.backward"]
    yield instance_of(backward, {"d.x": f"m{m}.d.x.0", "tokens": f"m{m}.tokens"}, {}, "")


def _embedding(program: Program, m: int) -> Instance:
    x, cos, sin = program.outputs
    reads = {name: f"m{m}.{name}" for name in ("tokens", "positions")}
    return instance_of(program, reads, {x: f"m{m}.x.0", cos: f"m{m}.cos", sin: f"m{m}.sin"}, "")


def _forward(program: Program, i: int, m: int, shape: Shape) -> Instance:
    reads = {name: f"m{m}.{name}" for name in ("cos", "sin", "segments")}
    reads["x"] = f"m{m}.x.{i}"
    reads["forced"] = f"m{m}.forced.{i}"
    writes = {program.outputs[0]: f"m{m}.x.{i + 1}"}
    if shape.kind(i) is not Kind.DENSE:
        writes[program.outputs[-1]] = f"m{m}.experts.{i}"
    writes.update({name: f"m{m}.l{i}.{name}" for name in program.kept if name not in writes})
    return instance_of(program, reads, writes, f"layers.{i}")


def _head(program: Program, m: int, shape: Shape) -> Instance:
    reads = {"x": f"m{m}.x.{shape.layers}", "targets": f"m{m}.targets", "divisor": "divisor"}
    writes = {"d.x": f"m{m}.d.x.{shape.layers}"} if "d.x" in program.outputs else {}
    return instance_of(program, reads, writes, "")


def _backward(programs: Mapping[str, Program], i: int, m: int, shape: Shape) -> Instance:
    forward = programs[f"{shape.kind(i)}.forward"]
    program = programs[f"{shape.kind(i)}.backward"]
    reads = dict(_forward(forward, i, m, shape).reads)
    reads.update(
        {v: k for v, k in _forward(forward, i, m, shape).writes.items() if v in forward.kept}
    )
    reads[f"d.{forward.outputs[0]}"] = f"m{m}.d.x.{i + 1}"
    return instance_of(program, reads, {program.outputs[0]: f"m{m}.d.x.{i}"}, f"layers.{i}")


def _update(program: Program) -> Instance:
    stats, verdict, *_ = program.outputs
    return instance_of(program, {"rates": "rates"}, {stats: "stats", verdict: "verdict"}, "")

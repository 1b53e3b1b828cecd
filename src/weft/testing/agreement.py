"""Whether two ways of training one model agree: another layout, order or engine, value by value.

    one rank ----------+
    any layout --------+--> Trace: sums of every step, gradients of the first, state after the last
    any legal order ---+      --> require_agreement (up to rounding), first_difference (bitwise)
    autograd ----------+

A layout runs on the stacked transport: all of its ranks in this process. Whatever a trace holds has
its logical name, so traces of different layouts have the same keys. Float64 is where layouts are
compared: there a bug cannot be mistaken for a token that rounding sent to another expert.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isnan, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.comm.mesh import Mesh
from weft.comm.transport import Transport
from weft.comm.transports.stacked import StackedWorld
from weft.compose.plan import OVERFLOW, Plan, drop_places, load_places
from weft.compose.step import Order, training_step
from weft.data.batches import MicroBatch
from weft.errors import VerificationError
from weft.model.families import Kind, Shape
from weft.model.params import Logical, Parameter
from weft.ops.optimizer import decide
from weft.parallel.layout import Layout
from weft.runtime.batch import Batch, pick
from weft.runtime.batch import stage as stage_batch
from weft.runtime.closures import Body
from weft.runtime.eager import Immediate, Oracle
from weft.runtime.executor import Environment, run_together
from weft.runtime.stage import Rates, Stage, build
from weft.runtime.state import initialise
from weft.testing.tolerance import GRADIENT_FLOAT64, relative_error

PlanOf = Callable[[Layout, int], Plan]  # the plan of a rank of a layout
Batches = Callable[[int], Sequence[MicroBatch]]  # every micro-batch of a step; steps count from 1
Routing = Callable[[int, int, int], NDArray[np.int64]]  # step, micro-batch, layer -> experts [N, k]
Bodies = Mapping[str, Body]

LOSS_FLOAT64 = 1e-8  # after some steps: rounding is 1e-16, but AdamW divides a gradient by its size
_CPU = torch.device("cpu")
_SUMS = ("loss", "balance loss", "z loss", "norm2")  # in the order of the statistics (compose.plan)
_NUM_LOSSES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What every run of a comparison does; `routing`, where given, forces the choices of tokens."""

    batches: Batches
    steps: int
    lr: float = 1e-2
    weight_decay: float = 0.1
    routing: Routing | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What a run did: sums of every step, gradients of the first, optimizer state after the last.

    Gradients are sums over all ranks before clipping, as the optimizer met them: after the first
    step the first moment is (1 - beta1) clip g, so a missing sum shows as well as a wrong backward.
    State is gathered from its shards.
    """

    sums: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    state: Mapping[str, Tensor]

    @property
    def losses(self) -> tuple[float, ...]:
        """The cross-entropy of each step."""
        steps = len(self.sums) and max(int(name.split()[1]) for name in self.sums)
        return tuple(float(self.sums[f"step {step} loss"]) for step in range(1, steps + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The value on which two traces agree least, and by how much."""

    name: str
    error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """Every rank of a layout in this process, ready to train."""

    stages: tuple[Stage, ...]
    world: StackedWorld

    @property
    def layout(self) -> Layout:
        return self.stages[0].plan.layout


# ---- running ----


def stack(
    plan_of: PlanOf,
    layout: Layout,
    *,
    bodies: Bodies,
    seed: int = 0,
    order: Order | None = None,
    wire: Callable[[Transport], Transport] = lambda transport: transport,
) -> Stack:
    """Builds and initialises every rank; `wire` may wrap the stacked transport of each."""
    mesh = Mesh(pp=layout.pp, dp=layout.dp, sp=layout.sp, ep=layout.ep, node=layout.node)
    world = StackedWorld(mesh)
    stages = []
    for rank in range(layout.world):
        plan = plan_of(layout, rank)
        transport = wire(world.transport(rank))
        compose = partial(training_step, order=order)
        stages.append(build(plan, bodies=bodies, transport=transport, device=_CPU, compose=compose))
        initialise(stages[-1].state, seed=seed)
    return Stack(stages=tuple(stages), world=world)


def run_layout(
    plan_of: PlanOf, layout: Layout, work: Work, *, bodies: Bodies, order: Order | None = None
) -> Trace:
    """Trains a layout from its initial state; see `train`."""
    return train(stack(plan_of, layout, bodies=bodies, order=order), work)


def train(ranks: Stack, work: Work) -> Trace:
    """Trains every rank for the steps of the work.

    Raises:
        VerificationError: two ranks differ in a parameter that both hold, or in a sum.
        DeadlockError: no rank can advance.
    """
    sums: dict[str, Tensor] = {}
    gradients: Mapping[str, Tensor] = {}
    require_replicas(ranks.stages, "before the first step")
    for step in range(1, work.steps + 1):
        statistics = train_step(ranks, work, step)
        sums.update(_named_sums(statistics, ranks.stages[0].plan.shape, step))
        require_replicas(ranks.stages, f"after step {step}")
        if step == 1:
            gradients = gather_gradients(ranks.stages, statistics)
    return Trace(sums=sums, gradients=gradients, state=gather_state(ranks.stages))


def train_step(ranks: Stack, work: Work, step: int) -> Tensor:
    """Trains one step on every rank and returns its statistics, summed over ranks; one that
    overflows once more, with room for every row.

    Raises:
        VerificationError: the sums of two ranks are not the same bits.
    """
    environments = _environments(ranks, work, step)
    run_together([stage.bound for stage in ranks.stages], environments, ranks.world.pending)
    if environments[0]["stats"][OVERFLOW] > 0:
        for stage in ranks.stages:
            stage.state.forgive()
        environments = _environments(ranks, work, step)
        run_together([stage.exact for stage in ranks.stages], environments, ranks.world.pending)
    first, *others = (environment["stats"] for environment in environments)
    for rank, other in enumerate(others, 1):
        if not torch.equal(first.view(torch.uint8), other.view(torch.uint8)):
            raise VerificationError(
                f"step {step}: the statistics of rank {rank} differ from those of rank 0, expected "
                "the same bits; an all-reduce must give every member one and the same sum"
            )
    return first.clone()


def _environments(ranks: Stack, work: Work, step: int) -> list[Environment]:
    """What the ranks read in a step."""
    micro_batches = work.batches(step)
    divisor = count_targets(micro_batches)
    rates = Rates(lr=work.lr, weight_decay=work.weight_decay, step=step)
    made: list[Environment] = []
    for stage in ranks.stages:
        batches = [share(stage.plan, micro_batches[m]) for m in local_micro_batches(stage.plan)]
        forced = _forced(stage.plan, work.routing, step) if work.routing else {}
        made.append(stage.environment(batches, divisor=divisor, rates=rates, forced=forced))
    return made


def run_oracle(
    plan_of: PlanOf,
    work: Work,
    *,
    bodies: Bodies,
    seed: int = 0,
    prepare: Callable[[Stack], Stack] = lambda ranks: ranks,
    algebra: Callable[[Bodies], Any] = Immediate,
) -> Trace:
    """The losses and gradients of the first step on one rank as autograd has them; no state.

    `prepare` may change the initial state, `algebra` how operators are computed.
    """
    (start,) = prepare(stack(plan_of, Layout(), bodies=bodies, seed=seed)).stages
    plan, statics = start.plan, start.state.statics
    weights = {p.name: statics[f"param:{p.name}"].clone() for p in start.step.parameters}
    for weight in weights.values():
        weight.requires_grad_()
    for i in range(plan.shape.layers):
        for name in ("router_bias", "past_load"):
            weights[f"layers.{i}.{name}"] = statics[f"state:layers.{i}.{name}"]
    oracle = Oracle(plan=plan, bodies=bodies, weights=weights, algebra=algebra)
    micro_batches = work.batches(1)
    divisor = count_targets(micro_batches)
    losses = torch.stack([oracle.losses(share(plan, b), divisor) for b in micro_batches]).sum(0)
    losses.sum().backward()
    gradients = {p.name: weights[p.name].grad for p in start.step.parameters}
    sums = {f"step 1 {name}": losses[i].detach() for i, name in enumerate(_SUMS[:_NUM_LOSSES])}
    return Trace(sums=sums, gradients=dict(_logical(start.step.parameters, gradients)), state={})


# ---- what a rank is fed ----


def local_micro_batches(plan: Plan) -> range:
    """Which micro-batches of a step a rank runs: those of its data-parallel rank."""
    first = plan.layout.dp_rank(plan.rank) * plan.local_micro_batches
    return range(first, first + plan.local_micro_batches)


def share(plan: Plan, batch: MicroBatch) -> Batch:
    """A rank's part of a micro-batch: that of its place in the sequence-parallel group."""
    return stage_batch(batch, plan.share, device=_CPU)


def count_targets(micro_batches: Sequence[MicroBatch]) -> float:
    """What the summed loss of a step is divided by: the targets that are not ignored, or 1."""
    return float(max(1, sum(int((batch.targets >= 0).sum()) for batch in micro_batches)))


def _forced(plan: Plan, routing: Routing, step: int) -> Mapping[str, Tensor]:
    """This rank's tokens of the forced choices, under the keys that a replaying step reads."""
    own = plan.share.tokens
    routed = [i for i in range(plan.shape.layers) if plan.shape.kind(i) is not Kind.DENSE]
    return {
        f"m{m}.forced.{layer}": torch.from_numpy(pick(routing(step, index, layer), own).copy())
        for m, index in enumerate(local_micro_batches(plan))
        for layer in routed
    }


# ---- gathering by logical name ----


def gather_gradients(stages: Sequence[Stage], statistics: Tensor) -> Mapping[str, Tensor]:
    """The gradient of every logical parameter in the first step, from the moments of its owners."""
    update = stages[0].plan.update
    clip = float(decide(statistics, clip_norm=update.clip_norm)[0])
    shapes = {part.name: part.shape for stage in stages for part in _parts(stage)}
    state = gather_state(stages)
    return {
        name: state[f"mean {name}"].view(shape) / ((1 - update.beta1) * clip)
        for name, shape in shapes.items()
    }


def _parts(stage: Stage) -> Iterator[Logical]:
    return (part for parameter in stage.step.parameters for part in parameter.parts)


def gather_state(stages: Sequence[Stage]) -> Mapping[str, Tensor]:
    """Master weights and moments of every logical parameter, put together from their shards.

    Raises:
        VerificationError: an element is owned by no rank, or by two.
    """
    whole: dict[str, Tensor] = {}
    owners: dict[str, Tensor] = {}
    for stage in stages:
        for kind, piece, values in stage.state.shards():
            name, count = f"{kind} {piece.name}", prod(piece.shape)
            place = slice(piece.start, piece.stop)
            whole.setdefault(name, values.new_zeros(count))[place] = values
            owners.setdefault(name, torch.zeros(count, dtype=torch.int64))[place] += 1
    for name, count in owners.items():
        wrong = torch.nonzero(count != 1).flatten().tolist()
        if wrong:
            raise VerificationError(
                f"element {wrong[0]} of {name} is owned by {int(count[wrong[0]])} ranks, expected "
                "1; look at parallel/zero.py"
            )
    return whole


def require_replicas(stages: Sequence[Stage], when: str) -> None:
    """Passes where every rank that holds a parameter holds the same bits of it.

    Raises:
        VerificationError: two do not; the parameter and both ranks are named.
    """
    seen: dict[str, tuple[int, Tensor]] = {}
    for rank, stage in enumerate(stages):
        for part, values in _held(stage.step.parameters, _tensors(stage, "param")):
            other, expected = seen.setdefault(part.label, (rank, values))
            if not torch.equal(values, expected):
                raise VerificationError(
                    f"{when}: {part.label} of rank {rank} differs from that of rank {other}, "
                    "expected the same bits; look at how gradients are summed and parameters "
                    "gathered"
                )


def _tensors(stage: Stage, what: str) -> Mapping[str, Tensor]:
    return {p.name: stage.state.statics[f"{what}:{p.name}"] for p in stage.step.parameters}


def _logical(
    parameters: Iterable[Parameter], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters; those of one rank are."""
    for part, values in _held(parameters, tensors):
        yield part.name, values.view(part.shape)


def _held(
    parameters: Iterable[Parameter], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[Logical, Tensor]]:
    """What is held of each logical parameter, flat."""
    for parameter in parameters:
        flat = tensors[parameter.name].reshape(-1)
        for part in parameter.parts:
            yield part, flat[part.start : part.stop]


def _named_sums(statistics: Tensor, shape: Shape, step: int) -> Iterator[tuple[str, Tensor]]:
    for place, name in enumerate(_SUMS):
        yield f"step {step} {name}", statistics[place]
    loads = statistics[load_places(shape)].view(shape.layers, shape.experts)
    for layer, load in enumerate(loads):
        yield f"step {step} load of layer {layer}", load
    for layer, dropped in enumerate(statistics[drop_places(shape)]):
        yield f"step {step} dropped in layer {layer}", dropped


# ---- comparing ----


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Difference:
    """The largest relative error between values of the same name; not a number counts as infinite.

    Raises:
        VerificationError: a name is on one side only, or nothing is compared.
    """
    lone = sorted(found.keys() ^ expected.keys())
    if lone or not found:
        raise VerificationError(
            f"found {len(found)} values, expected {len(expected)} of the same names; "
            f"on one side only: {lone[:5]}"
        )
    errors = {name: relative_error(value, expected[name]) for name, value in found.items()}
    sizes = {name: inf if isnan(error) else error for name, error in errors.items()}
    worst = max(sizes, key=sizes.__getitem__)
    return Difference(name=worst, error=sizes[worst])


def require_agreement(
    found: Trace,
    expected: Trace,
    *,
    loss: float = LOSS_FLOAT64,
    gradient: float = GRADIENT_FLOAT64,
) -> None:
    """Passes where sums and gradients agree within these relative bounds.

    Raises:
        VerificationError: they do not; the worst value is named.
    """
    common = {name: value for name, value in found.sums.items() if name in expected.sums}
    for what, ours, theirs, bound in (
        ("sum", common, expected.sums, loss),
        ("gradient", found.gradients, expected.gradients, gradient),
    ):
        worst = compare(ours, theirs)
        if worst.error > bound:
            raise VerificationError(
                f"{what} {worst.name}: found a relative error of {worst.error:.3g}, expected at "
                f"most {bound:.3g}; compare in float64 with the routing of one rank replayed"
            )


def first_difference(found: Trace, expected: Trace) -> str | None:
    """The name of the first value whose bits differ, none where all are the same."""
    for part in ("sums", "gradients", "state"):
        ours, theirs = getattr(found, part), getattr(expected, part)
        if ours.keys() != theirs.keys():
            return f"the names of {part}"
        for name, value in theirs.items():
            if not torch.equal(ours[name], value):
                return name
    return None

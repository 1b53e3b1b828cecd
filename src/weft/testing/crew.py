"""The ranks of a layout that live in this process, and what a run of theirs leaves behind.

    stacked     every rank is here, one loop takes turns over them
    gloo        one rank is here, the others are processes beside this one

Both run the same code, so that a check is written once: a `Run` is what one rank can say of a
`Trial`. Gradients are taken from where the optimizer met them: after the first step the first
moment is (1 - beta1) clip g, so a missing synchronisation shows as well as a wrong backward.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.comm.mesh import Mesh
from weft.comm.transport import Transport
from weft.comm.transports.counting import CountingTransport
from weft.comm.transports.gloo import GlooTransport
from weft.comm.transports.stacked import StackedWorld
from weft.compose.plan import OVERFLOW, Plan, without_limit
from weft.compose.recipe import plan as make_plan
from weft.compose.stage import chunks_of
from weft.compose.step import Step, training_step
from weft.config.compression import CompressionConfig
from weft.config.overlap import OverlapConfig
from weft.config.run import RunConfig
from weft.model.families import Kind
from weft.optim.lr import scheduled
from weft.parallel.layout import Layout
from weft.runtime.backends import bodies, choose
from weft.runtime.batch import Batch
from weft.runtime.closures import Body
from weft.runtime.executor import BoundStep, Environment, run_together
from weft.runtime.stage import Rates, Stage, build
from weft.runtime.state import initialise, precision
from weft.testing.sabotage import HONEST, Sabotage
from weft.testing.wire import Key, own_choices
from weft.trainer.feed import Feed

Routing = Callable[[int, int, int], NDArray[np.int64]]  # step, micro-batch, layer -> experts [N, k]
Place = tuple[int, int, int]  # step, micro-batch of all ranks, layer
Composer = Callable[[Plan], Step]

_CPU = torch.device("cpu")
_DIGEST_BYTES = 12  # a chance of 1e-14 that any two of a million tensors collide


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What every run of a proof shares: the recipe on one rank, its corpus, its sabotage."""

    config: RunConfig
    feed: Feed
    sabotage: Sabotage = HONEST


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One way to run: so many steps in a dtype and an order, with experts forced or not.

    What travels is compressed as the recipe says only where nothing is compared up to rounding;
    with `encoded` activations are, and gradients between replicas are not.
    Without `drops` groups of experts take whatever chooses them: then choices alone say which rows
    travel.
    """

    steps: int
    precision: str
    order: str = "overlapped"
    routing: Routing | None = None
    compressed: bool = False
    encoded: bool = False
    drops: bool = True


def composer() -> Composer:
    """Composes steps that write down their routing, each plan's once: trials share them."""
    return cache(partial(training_step, record_routing=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """Ranks of one layout, their transports, how their steps are composed, and how, bound, run."""

    layout: Layout
    ranks: tuple[int, ...]
    transports: tuple[Transport, ...]
    together: Callable[[Sequence[BoundStep], Sequence[Environment]], None]
    compose: Composer = field(default_factory=composer)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Elements [start, stop) of a logical gradient, as the rank that owns them had them."""

    name: str
    start: int
    stop: int
    values: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one rank can say of a trial.

    Shapes: sums [steps, I], after the sum over ranks.
    """

    step: Step
    start: Mapping[str, str]
    end: Mapping[str, str]
    sums: Tensor
    gradients: tuple[Piece, ...]
    choices: Mapping[Place, Tensor]
    batches: Mapping[tuple[int, int], Batch]
    received: Mapping[Key, int]


@dataclass(kw_only=True, slots=True)
class _Diary:
    """What is written down while a rank runs."""

    sums: list[Tensor] = field(default_factory=list)
    gradients: tuple[Piece, ...] = ()
    choices: dict[Place, Tensor] = field(default_factory=dict)
    batches: dict[tuple[int, int], Batch] = field(default_factory=dict)
    received: Counter[Key] = field(default_factory=Counter)


def mesh_of(layout: Layout) -> Mesh:
    """The mesh of a layout."""
    return Mesh(pp=layout.pp, dp=layout.dp, sp=layout.sp, ep=layout.ep, node=layout.node)


def stacked_crew(layout: Layout) -> Crew:
    """Every rank of a layout in this process."""
    world = StackedWorld(mesh_of(layout))
    ranks = tuple(range(layout.world))
    return Crew(
        layout=layout,
        ranks=ranks,
        transports=tuple(world.transport(rank) for rank in ranks),
        together=partial(run_together, pending=world.pending),
    )


def gloo_crew(layout: Layout, rank: int, *, timeout_seconds: float) -> Crew:
    """One rank of a layout; the other processes make theirs at the same time."""
    transport = GlooTransport(mesh_of(layout), timeout_seconds=timeout_seconds)
    return Crew(layout=layout, ranks=(rank,), transports=(transport,), together=_each)


def _each(steps: Sequence[BoundStep], environments: Sequence[Environment]) -> None:
    for step, environment in zip(steps, environments, strict=True):
        step.run(environment)


# ---- running -------------------------------------------------------------------------------------


def run(crew: Crew, course: Course, trial: Trial) -> tuple[Run, ...]:
    """Trains the ranks of a crew from the initial state; what each can say of it."""
    counters = [CountingTransport(transport) for transport in crew.transports]
    stages = [
        _stage(crew, rank, counter, course, trial)
        for rank, counter in zip(crew.ranks, counters, strict=True)
    ]
    starts = [digests(stage, ("param",)) for stage in stages]
    load = course.sabotage.feed(course.feed, course.config)
    diaries = [_Diary() for _ in stages]
    for step in range(trial.steps):
        batches = [load(stage.plan, step) for stage in stages]
        fresh = partial(_environments, stages, batches, course, trial, step)
        crew.together([stage.bound for stage in stages], environments := fresh())
        if environments[0]["stats"][OVERFLOW] > 0:  # refused, and as if it had not been
            for stage, counter in zip(stages, counters, strict=True):
                stage.state.forgive()
                counter.reset()
            crew.together([stage.exact for stage in stages], environments := fresh())
        for number, environment in enumerate(environments):
            _write_down(diaries[number], stages[number], environment, step)
            diaries[number].batches.update(_numbered(stages[number].plan, step, batches[number]))
            diaries[number].received.update(counters[number].counts())
            counters[number].reset()
    return tuple(
        Run(
            step=stage.step,
            start=start,
            end=digests(stage, ("param", "master", "mean", "square")),
            sums=torch.stack(diary.sums),
            gradients=diary.gradients,
            choices=diary.choices,
            batches=diary.batches,
            received=diary.received,
        )
        for stage, start, diary in zip(stages, starts, diaries, strict=True)
    )


def initial_parameters(course: Course, trial: Trial) -> dict[str, Tensor]:
    """What one rank starts from: every logical parameter, flat."""
    crew = stacked_crew(Layout())
    stage = _stage(crew, 0, crew.transports[0], course, trial)
    found: dict[str, Tensor] = {}
    for parameter in stage.step.parameters:
        flat = stage.state.statics[f"param:{parameter.name}"].reshape(-1)
        found.update({part.name: flat[part.start : part.stop] for part in parameter.parts})
    return found


def settings(layout: Layout) -> dict[str, Any]:
    """A layout as a recipe writes it."""
    return {
        "pp": layout.pp,
        "dp": layout.dp,
        "sp": layout.sp,
        "ep": layout.ep,
        "dispatch": layout.dispatch.value,
        "node": layout.node,
        "pipeline": layout.pipeline,
        "chunks": layout.chunks,
        "layers": layout.layers,
        "attention": layout.attention.value,
        "ffn": layout.ffn.value,
    }


def plan_of(course: Course, trial: Trial, layout: Layout, rank: int) -> Plan:
    """The plan of one rank of a trial."""
    config = course.config
    train = config.train.model_copy(update={"precision": trial.precision})
    overlap = config.overlap.model_copy(update={"order": trial.order})
    if trial.order == "serial":  # the step that the others must equal: in chunks if they are
        plain = {"order": "serial", "across": False, "merge": False, "schedule": ""}
        overlap = (
            config.overlap.model_copy(update=plain)
            if config.overlap.split
            else OverlapConfig(order="serial")
        )
    parallel = config.parallel.model_copy(update=settings(layout))
    compression = config.compression if trial.compressed else CompressionConfig()
    if trial.encoded:
        compression = config.compression.model_copy(update={"gradients": "fp32"})
    update = {
        "train": train,
        "overlap": overlap,
        "parallel": parallel,
        "compression": compression,
    }
    made = make_plan(config.model_copy(update=update), rank, replay=trial.routing is not None)
    return made if trial.drops else without_limit(made)


def _stage(crew: Crew, rank: int, transport: Transport, course: Course, trial: Trial) -> Stage:
    plan = course.sabotage.plan(plan_of(course, trial, crew.layout, rank))
    stage = build(
        plan,
        bodies=course.sabotage.bodies(_bodies(trial.precision), rank),
        transport=course.sabotage.wire(transport, rank),
        device=_CPU,
        compose=crew.compose,
    )
    initialise(stage.state, seed=course.config.train.seed)
    course.sabotage.start(stage)
    return stage


def _bodies(name: str) -> Mapping[str, Body]:
    return bodies(choose(_CPU, precision(name).act))


def _environment(
    stage: Stage, course: Course, trial: Trial, step: int, batches: Sequence[Batch]
) -> Environment:
    plan, optim = stage.plan, course.config.optim
    lr = scheduled(optim, step, total=course.config.train.steps)
    return stage.environment(
        batches,
        divisor=float(course.feed.training.divisor(step)),
        rates=Rates(lr=lr, weight_decay=optim.weight_decay, step=step + 1),
        forced=_forced(plan, trial.routing, step) if trial.routing else None,
    )


def _environments(
    stages: Sequence[Stage],
    batches: Sequence[Sequence[Batch]],
    course: Course,
    trial: Trial,
    step: int,
) -> list[Environment]:
    return [
        _environment(stage, course, trial, step, own)
        for stage, own in zip(stages, batches, strict=True)
    ]


def _numbered(
    plan: Plan, step: int, batches: Sequence[Batch]
) -> Iterator[tuple[tuple[int, int], Batch]]:
    """A rank's micro-batches of a step with their numbers in the step."""
    for m, batch in zip(own_micro_batches(plan), batches, strict=True):
        yield (step, m), batch


def _forced(plan: Plan, routing: Routing, step: int) -> Mapping[str, Tensor]:
    choices = partial(routing, step)
    return {
        f"m{m}.forced.{layer}": torch.from_numpy(
            own_choices(plan, plan.rank, m, choices, layer).copy()
        )
        for m in range(plan.local_micro_batches)
        for layer in routed_layers(plan)
    }


def routed_layers(plan: Plan) -> tuple[int, ...]:
    """The layers of a rank whose tokens choose experts."""
    mine = (i for chunk in chunks_of(plan) for i in chunk.layers)
    return tuple(i for i in mine if plan.shape.kind(i) is not Kind.DENSE)


def own_micro_batches(plan: Plan) -> range:
    """Which micro-batches of a step a rank runs: those of its data-parallel rank."""
    first = plan.layout.dp_rank(plan.rank) * plan.local_micro_batches
    return range(first, first + plan.local_micro_batches)


# ---- what is kept --------------------------------------------------------------------------------


def _write_down(diary: _Diary, stage: Stage, environment: Environment, step: int) -> None:
    diary.sums.append(environment["stats"].clone())
    if step == 0:
        diary.gradients = tuple(_gradients(stage, float(environment["verdict"][0])))
    for index, m in enumerate(own_micro_batches(stage.plan)):
        for layer in routed_layers(stage.plan):
            diary.choices[step, m, layer] = environment[f"m{index}.experts.{layer}"]


def _gradients(stage: Stage, clip: float) -> Iterator[Piece]:
    scale = (1 - stage.plan.update.beta1) * clip
    for kind, piece, values in stage.state.shards():
        if kind == "mean":
            yield Piece(
                name=piece.name, start=piece.start, stop=piece.stop, values=values.double() / scale
            )


def digests(stage: Stage, kinds: Sequence[str]) -> dict[str, str]:
    """The bits of each logical parameter that a rank holds, and of each piece of state it owns."""
    found: dict[str, str] = {}
    if "param" in kinds:
        for parameter in stage.step.parameters:
            flat = stage.state.statics[f"param:{parameter.name}"].reshape(-1)
            for part in parameter.parts:
                found[part.label] = digest(flat[part.start : part.stop])
    for kind, piece, values in stage.state.shards():
        if kind in kinds:
            found[f"{kind} of {piece.name}[{piece.start}:{piece.stop}]"] = digest(values)
    return found


def digest(values: Tensor) -> str:
    """The bits of a tensor, as a name for them."""
    words = values.detach().contiguous().view(torch.uint8).numpy()
    return blake2b(words.data, digest_size=_DIGEST_BYTES).hexdigest()

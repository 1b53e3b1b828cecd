"""One rank's part of a model: its state and its bound steps, ready to be fed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from weft.comm.transport import Transport
from weft.compose.plan import Plan, without_bound
from weft.compose.step import Step, evaluation_step, gathering_step, training_step
from weft.ops.optimizer import Rates as Rates
from weft.runtime.batch import Batch
from weft.runtime.closures import Body
from weft.runtime.executor import BoundStep, Environment, bind
from weft.runtime.lanes import CudaLanes, HostLanes, Lanes
from weft.runtime.state import State, allocate, with_own_statistics
from weft.runtime.wire import wired


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A bound training step over its state; `exact` is the same with room for every row, `gathers`
    brings its parameters up to date with the master weights of all ranks.
    """

    step: Step
    state: State
    bound: BoundStep
    exact: BoundStep
    gathers: BoundStep
    transport: Transport

    @property
    def plan(self) -> Plan:
        return self.step.plan

    @property
    def exactly(self) -> "Stage":
        """The same stage with room for every row, whose number the host waits for."""
        return replace(self, bound=self.exact)

    def environment(
        self,
        batches: Sequence[Batch],
        *,
        divisor: float,
        rates: Rates,
        forced: Mapping[str, Tensor] | None = None,
        notes: Mapping[int, float] = MappingProxyType({}),
    ) -> Environment:
        """What a step reads; clears what it accumulates.

        `notes` are first values of elements of the statistics: what this rank has to say to all.
        """
        self.state.begin()
        for place, value in notes.items():
            self.state.stats[place] = value
        environment: Environment = {
            "divisor": divisor,
            "rates": rates,
            **(forced or {}),
        }
        for m, batch in enumerate(batches):
            environment.update(batch.environment(m))
        return environment

    def train(
        self,
        batches: Sequence[Batch],
        *,
        divisor: float,
        rates: Rates,
        notes: Mapping[int, float] = MappingProxyType({}),
    ) -> Environment:
        """One step; the environment it returns holds the step's results (`stats`, `verdict`)."""
        made = self.environment(batches, divisor=divisor, rates=rates, notes=notes)
        return self.bound.run(made)


def build(
    plan: Plan,
    *,
    bodies: Mapping[str, Body],
    transport: Transport,
    device: torch.device,
    compose: Callable[[Plan], Step] = training_step,
    lanes: Lanes | None = None,
) -> Stage:
    """Composes, allocates and binds one rank's training step.

    Without `lanes` collectives run beside compute, as the device has it. Ranks that share a process
    and its GPU (`stacked`) share one stream too: they take `HostLanes`.
    """
    step = compose(plan)
    state = allocate(step, device=device)
    lanes = lanes or lanes_of(device, transport)
    bound = _bind(step, state.statics, bodies, transport, lanes)
    exact = bound
    if plan.bounded_rows:
        whole = compose(without_bound(plan))
        assert whole.zeroed == step.zeroed, f"{plan.bounded_rows=}"  # one state for both
        exact = _bind(whole, state.statics, bodies, transport, lanes)
    gathers = _bind(gathering_step(plan), state.statics, bodies, transport, lanes)
    return Stage(
        step=step, state=state, bound=bound, exact=exact, gathers=gathers, transport=transport
    )


def rebind(
    stage: Stage,
    *,
    bodies: Mapping[str, Body],
    device: torch.device,
    wrap: Callable[[Body], Body],
) -> BoundStep:
    """The step of a stage over the same state, with room for every row, each of its bodies wrapped:
    what they return can be looked at.
    """
    wired_bodies = wired(bodies, stage.transport, stage.plan.sync.gradients)
    lanes = lanes_of(device, stage.transport)
    wrapped = {name: wrap(body) for name, body in wired_bodies.items()}
    whole = training_step(without_bound(stage.plan)) if stage.plan.bounded_rows else stage.step
    return bind(whole, bodies=wrapped, statics=stage.state.statics, lanes=lanes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluator:
    """The forward alone over a stage's parameters, with statistics of its own."""

    bound: BoundStep
    stats: Tensor
    transport: Transport

    def add(self, batch: Batch, *, divisor: float) -> None:
        """Adds one micro-batch's loss over `divisor` to this rank's sum."""
        self.bound.run({"divisor": divisor, **batch.environment(0)})

    def total(self) -> float:
        """The sum over all ranks; starts the next sum from zero."""
        total = self.transport.all_reduce(self.stats[:1], axis="world", label="evaluation").wait()
        self.stats.zero_()
        return float(total)


def evaluator(
    stage: Stage,
    *,
    bodies: Mapping[str, Body],
    device: torch.device,
    lanes: Lanes | None = None,
) -> Evaluator:
    """Binds the evaluation step to the parameters of a stage."""
    step = evaluation_step(stage.plan)
    own = with_own_statistics(stage.state)
    lanes = lanes or lanes_of(device, stage.transport)
    bound = _bind(step, own.statics, bodies, stage.transport, lanes)
    return Evaluator(bound=bound, stats=own.stats, transport=stage.transport)


def lanes_of(device: torch.device, transport: Transport) -> Lanes:
    """How a rank with a device to itself runs its collectives."""
    if device.type != "cuda":
        return HostLanes()
    return CudaLanes(device, alone=lambda axis: transport.group_size(axis) == 1)


def _bind(
    step: Step,
    statics: Mapping[str, Any],
    bodies: Mapping[str, Body],
    transport: Transport,
    lanes: Lanes,
) -> BoundStep:
    wired_bodies = wired(bodies, transport, step.plan.sync.gradients)
    return bind(step, bodies=wired_bodies, statics=statics, lanes=lanes)

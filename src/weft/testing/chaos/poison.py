"""R9: a number that is none, on one rank alone, in any operator: no rank takes the step.

Two ranks in one process; one has one body that makes an infinite or undefined number. All
that a step may change has the same bits after it, on both, and the next step is taken.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from itertools import product

import torch
from torch import Tensor

from weft.comm.mesh import Mesh
from weft.comm.transports.stacked import StackedWorld
from weft.errors import VerificationError
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.runtime.closures import Body
from weft.runtime.stage import build
from weft.runtime.state import initialise
from weft.testing import models
from weft.testing.agreement import Stack, Work, require_replicas, train_step
from weft.testing.chaos.result import Result, Size

PLACES = (
    "qkv_project",
    "expert_up.wgrad",
    "attention.dgrad",
    "expert_down",
    "router_logits",
    "add_rms_norm.dgrad",
    "embed.wgrad",
    "swiglu.dgrad",
    "project.wgrad",
    "expert_down.wgrad_first",
    "expert_up",
)
RANKS = (1, 0)
VALUES = (math.nan, math.inf, -math.inf)
HARMLESS = (-math.inf, "router_logits")  # a chance of zero, as good as any other
MODEL = models.mixtral_like()
WORK = Work(batches=partial(models.batches, MODEL), steps=1)
CPU = torch.device("cpu")
KEPT = ("bucket:", "master:", "mean:", "square:", "state:")


class Poison:
    """A body whose first result has one bad element while it is armed."""

    def __init__(self, body: Body, value: float) -> None:
        self.body, self.value, self.armed = body, value, False

    def __call__(self, *inputs: object, **attributes: object) -> object:
        made = self.body(*inputs, **attributes)
        if self.armed:
            first = made[0] if isinstance(made, tuple) else made
            assert isinstance(first, Tensor), f"{first=}"
            first.view(-1)[0] = self.value
        return made


def check(size: Size) -> Result:
    """So many operators, each with a value and the rank that it happens on."""
    trials, faults = size.trials(12, 60), []
    cases = [case for case in product(VALUES, RANKS, PLACES) if case[::2] != HARMLESS]
    for value, sick, name in cases[trials.start : trials.stop]:
        ranks, poison = _two_ranks(name, value, sick, {})
        train_step(ranks, WORK, 1)
        before = _bits(ranks)
        poison.armed = True
        with suppress(VerificationError):
            train_step(ranks, WORK, 2)
        poison.armed = False
        if not _same(_bits(ranks), before):
            faults.append(f"{name} {value} on rank {sick}: the step was taken")
        train_step(ranks, WORK, 3)
        require_replicas(ranks.stages, f"after {name} {value}")
        if _same(_bits(ranks), before):
            faults.append(f"{name} {value} on rank {sick}: the next step was not taken")
    return Result(
        promise="R9 no rank takes a step that is not finite",
        counts={"steps": len(trials)},
        peaks={"operators": min(len(trials), len(PLACES))},
        faults=faults,
        control=_control(),
    )


def _two_ranks(
    name: str, value: float, sick: int, others: Mapping[str, Body]
) -> tuple[Stack, Poison]:
    honest = {**reference_bodies(), **others}
    poison = Poison(honest[name], value)
    world = StackedWorld(Mesh(dp=2))
    stages = []
    for rank in RANKS:
        bodies = {**honest, name: poison} if rank == sick else honest
        plan = models.plan(MODEL, Layout(dp=2), rank, order="overlapped")
        stages.append(build(plan, bodies=bodies, transport=world.transport(rank), device=CPU))
        initialise(stages[-1].state, seed=0)
    return Stack(stages=tuple(stages), world=world), poison


def _bits(ranks: Stack) -> list[Mapping[str, Tensor]]:
    return [
        {k: v.clone() for k, v in stage.state.statics.items() if k.startswith(KEPT)}
        for stage in ranks.stages
    ]


def _same(one: list[Mapping[str, Tensor]], other: list[Mapping[str, Tensor]]) -> bool:
    return all(torch.equal(a[k], b[k]) for a, b in zip(one, other, strict=True) for k in a)


def _accept(stats: Tensor, *, clip_norm: float) -> Tensor:  # noqa: ARG001 - a body's signature
    return stats.new_tensor([1.0, 0.0])


def _control() -> str:
    """Without the verdict the step is taken."""
    ranks, poison = _two_ranks("qkv_project", math.nan, 1, {"decide": _accept})
    before = _bits(ranks)
    poison.armed = True
    with suppress(VerificationError):  # sums that are no numbers differ from themselves
        train_step(ranks, WORK, 1)
    return "a step without a verdict was taken" if not _same(_bits(ranks), before) else ""

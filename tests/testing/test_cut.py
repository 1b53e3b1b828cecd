"""Segments cut anywhere, collectives in flight over the edge: the same bits as in one piece."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from weft.comm.mesh import Mesh
from weft.comm.transports.gloo import GlooTransport
from weft.compose.step import training_step
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Dispatch, Layout
from weft.runtime.executor import bind
from weft.runtime.lanes import HostLanes
from weft.runtime.stage import Rates, build
from weft.runtime.state import initialise
from weft.runtime.wire import collective_bodies
from weft.schedule.action import Join, is_collective
from weft.schedule.layer import serial, shuffled
from weft.testing import agreement, models
from weft.testing.cut import cut_step
from weft.testing.ranks import run_ranks

BODIES = reference_bodies()
LAYOUTS = {
    "all_to_all": Layout(sp=2, ep=2),
    "all_gather": Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER),
}
PLAN = partial(models.plan, models.mixtral_like())
WORK = agreement.Work(batches=partial(models.batches, models.mixtral_like()), steps=2)


def after_collective(program, which: int) -> int:
    """Right behind a collective, so that its result crosses in flight."""
    places = [i + 1 for i, task in enumerate(program.tasks) if is_collective(task)]
    return places[which % len(places)] if places else len(program.tasks) // 2


def run_cut(layout: Layout, which: int, order) -> agreement.Trace:
    ranks = agreement.stack(PLAN, layout, bodies=BODIES)
    cut = partial(after_collective, which=which)
    stages = []
    for stage in ranks.stages:
        step = cut_step(stage.step, cut, order)
        bodies = {**BODIES, **collective_bodies(stage.transport)}
        bound = bind(step, bodies=bodies, statics=stage.state.statics, lanes=HostLanes())
        stages.append(replace(stage, bound=bound))
    return agreement.train(agreement.Stack(stages=tuple(stages), world=ranks.world), WORK)


@pytest.fixture(scope="module")
def whole() -> dict[str, agreement.Trace]:
    return {
        at: agreement.run_layout(PLAN, layout, WORK, bodies=BODIES)
        for at, layout in LAYOUTS.items()
    }


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("at", LAYOUTS)
def test_a_collective_in_flight_over_an_edge_gives_the_same_bits(at, which, whole):
    order = serial if which % 2 else partial(shuffled, seed=which)
    found = run_cut(LAYOUTS[at], which, order)
    assert agreement.first_difference(found, whole[at]) is None


def test_a_cut_step_has_open_collectives():
    step = cut_step(
        training_step(PLAN(LAYOUTS["all_gather"], 0)), partial(after_collective, which=0), serial
    )
    opened = {name for name, ordered in step.templates.items() if ordered.program.opens}
    joined = {n for n, o in step.templates.items() if any(isinstance(a, Join) for a in o.actions)}
    assert "moe.forward" in opened
    assert joined == {f"{name}.rest" for name in opened}


def test_over_gloo_too(whole):
    """Two processes, handles of the wire in flight over the edges."""
    at = "all_gather"
    digests = run_ranks(2, _gloo_rank, LAYOUTS[at])
    assert [step_1 for step_1, _ in digests] == [whole[at].losses[0]] * 2
    assert [step_2 for _, step_2 in digests] == [whole[at].losses[1]] * 2


def _gloo_rank(rank: int, layout: Layout) -> list[float]:
    transport = GlooTransport(Mesh(sp=layout.sp, ep=layout.ep), timeout_seconds=20)
    plan = PLAN(layout, rank)
    step = cut_step(
        training_step(plan), partial(after_collective, which=1), partial(shuffled, seed=3)
    )
    stage = build(
        plan, bodies=BODIES, transport=transport, device=torch.device("cpu"), compose=lambda _: step
    )
    initialise(stage.state, seed=0)
    losses = []
    for number in (1, 2):
        micro_batches = WORK.batches(number)
        batches = [agreement.share(plan, m) for m in micro_batches]
        rates = Rates(lr=WORK.lr, weight_decay=WORK.weight_decay, step=number)
        divisor = agreement.count_targets(micro_batches)
        losses.append(float(stage.train(batches, divisor=divisor, rates=rates)["stats"][0]))
    transport.close()
    return losses

"""Every layout trains what one rank trains: all of its ranks in one process, in float64.

Sums of three steps within 1e-8, gradients of the first within 1e-10, replicas to the bit.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from weft.compose.plan import Plan
from weft.ops.registry import cpu_bodies, reference_bodies
from weft.parallel.layout import Dispatch, Layout
from weft.testing import models, routing
from weft.testing.agreement import (
    Routing,
    Stack,
    Trace,
    Work,
    compare,
    require_agreement,
    run_layout,
    stack,
    train,
)

BODIES = {**reference_bodies(), **cpu_bodies()}
GATHER = Dispatch.ALL_GATHER
LAYOUTS = [
    Layout(sp=2, ep=2),
    Layout(sp=2, ep=2, dispatch=GATHER),
    Layout(dp=2),
    Layout(dp=2, ep=2),
    Layout(dp=2, ep=2, dispatch=GATHER),
    Layout(sp=2, dp=2, ep=2),
    Layout(sp=2, dp=2, ep=4),
    Layout(sp=4, ep=4),
    Layout(sp=4, dp=2, ep=8, dispatch=GATHER),
    Layout(sp=4),  # twice as many ranks as key/value heads
]
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.name)
MODELS = {**models.FAMILIES, **models.VARIANTS}
STEPS = 3  # the third is the first whose state two updates have made


def plan_of(family: str, **fields) -> Callable[[Layout, int], Plan]:
    return partial(models.plan, MODELS[family], order="overlapped", **fields)


def work(family: str, steps: int = STEPS, forced: Routing | None = None) -> Work:
    batches = partial(models.batches, MODELS[family])
    return Work(batches=batches, steps=steps, routing=forced)


def forced(generator: str) -> Routing:
    shape = models.FAMILIES["mixtral"].shape
    tokens = models.SEQUENCE * models.MICRO_BATCH

    def choices(step: int, micro_batch: int, layer: int):
        seed = 100 * step + 10 * micro_batch + layer  # all different, whatever the layout
        return routing.GENERATORS[generator](tokens, shape.experts, shape.top_k, seed)

    return choices


@cache
def one_rank(family: str, generator: str | None = None) -> Trace:
    plans = plan_of(family, replay=generator is not None)
    whole = work(family, forced=forced(generator) if generator else None)
    return run_layout(plans, Layout(), whole, bodies=BODIES)


@LAYOUT
@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_layout_trains_what_one_rank_trains(family, layout):
    found = run_layout(plan_of(family), layout, work(family), bodies=BODIES)
    require_agreement(found, one_rank(family))


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=Layout.name)
@pytest.mark.parametrize("family", models.VARIANTS)
def test_what_a_family_adds_is_cut_like_the_rest(family, layout):
    found = run_layout(plan_of(family), layout, work(family), bodies=BODIES)
    require_agreement(found, one_rank(family))


@LAYOUT
@pytest.mark.parametrize("generator", routing.GENERATORS)
def test_a_layout_agrees_under_any_routing(generator, layout):
    plans = plan_of("mixtral", replay=True)
    whole = work("mixtral", forced=forced(generator))
    found = run_layout(plans, layout, whole, bodies=BODIES)
    require_agreement(found, one_rank("mixtral", generator))


@cache
def after_two_steps(layout: Layout) -> Trace:
    return run_layout(plan_of("deepseek"), layout, work("deepseek", steps=2), bodies=BODIES)


@LAYOUT
def test_optimizer_state_put_together_is_that_of_one_rank(layout):
    assert compare(after_two_steps(layout).state, after_two_steps(Layout()).state).error < 1e-8


def with_equal_logits(ranks: Stack) -> Stack:
    for stage in ranks.stages:
        for name, tensor in stage.state.statics.items():
            if name.endswith(".router") and name.startswith("param:"):
                tensor.zero_()
    return ranks


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=Layout.name)
def test_a_router_whose_scores_are_all_equal_takes_the_lowest_ids_on_every_layout(layout):
    traces = [
        train(with_equal_logits(stack(plan_of("mixtral"), at, bodies=BODIES)), work("mixtral", 1))
        for at in (Layout(), layout)
    ]
    require_agreement(traces[1], traces[0])
    load = traces[1].sums["step 1 load of layer 0"]
    assert load.tolist() == [128, 128, 0, 0, 0, 0, 0, 0]


def with_bias(ranks: Stack) -> Stack:
    for stage in ranks.stages:
        for name, tensor in stage.state.statics.items():
            if name.startswith("state:"):
                tensor.copy_(torch.linspace(1, -1, len(tensor)))
    return ranks


@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[8]], ids=Layout.name)
def test_a_bias_steers_the_choice_and_nothing_else_on_every_layout(layout):
    plain = one_rank("deepseek")
    traces = [
        train(with_bias(stack(plan_of("deepseek"), at, bodies=BODIES)), work("deepseek"))
        for at in (Layout(), layout)
    ]
    require_agreement(traces[1], traces[0])
    first = traces[0].sums["step 1 load of layer 1"]
    assert first[0] > plain.sums["step 1 load of layer 1"][0]


def test_one_long_document_and_many_short_ones_agree_across_ranks():
    """Documents that end exactly at, just before and just behind the edge between two ranks."""

    def batches(step: int):
        made = models.batches(models.FAMILIES["mixtral"], step)
        ends = [(16, 32), (8, 16, 32), (7, 9, 16, 31, 32), tuple(range(1, 33))]
        return [with_documents(batch, e) for batch, e in zip(made, ends, strict=True)]

    whole = replace(work("mixtral"), batches=batches)
    one = run_layout(plan_of("mixtral"), Layout(), whole, bodies=BODIES)
    for layout in (Layout(sp=2, ep=2), Layout(sp=4, ep=4)):
        require_agreement(run_layout(plan_of("mixtral"), layout, whole, bodies=BODIES), one)


def with_documents(batch, ends: tuple[int, ...]):
    starts = (0, *ends[:-1])
    positions = batch.positions.copy()
    for start, end in zip(starts, ends, strict=True):
        positions[start:end] = range(end - start)
    return replace(batch, positions=positions, ends=ends)


def test_a_rank_without_a_single_valid_target_agrees():
    def batches(step: int):
        made = models.batches(models.FAMILIES["mixtral"], step)
        made[0].targets[:16] = -100
        made[1].targets[:] = -100
        return made

    whole = replace(work("mixtral"), batches=batches)
    one = run_layout(plan_of("mixtral"), Layout(), whole, bodies=BODIES)
    for layout in (Layout(sp=2, ep=2), Layout(dp=4)):
        require_agreement(run_layout(plan_of("mixtral"), layout, whole, bodies=BODIES), one)

"""Every combination of attention and feed-forward that the paper compares trains what one rank
trains, on two and on four stacked ranks, in float64.

Each step of the routed trial forces another hard routing. What is planted must be found.
"""

from functools import cache, partial

import pytest

from weft.compose.plan import Plan
from weft.ops.registry import cpu_bodies, reference_bodies
from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout
from weft.schedule.layer import serial
from weft.testing import models, routing
from weft.testing.agreement import (
    Trace,
    Work,
    compare,
    first_difference,
    require_agreement,
    run_layout,
)

BODIES = {**reference_bodies(), **cpu_bodies()}
TP, CP, TP_FFN = Attention.TP, Attention.CP, FeedForward.TP
STEPS = 2
ALL = {**models.FAMILIES, **models.VARIANTS}


def both(n: int, **fields) -> list[Layout]:
    """Every pair but those of sequence and expert parallelism alone, over n ranks."""
    return [
        Layout(sp=n, attention=TP, ffn=TP_FFN, **fields),
        Layout(sp=n, ffn=TP_FFN, **fields),
        Layout(sp=n, ep=n, attention=TP, **fields),
        Layout(sp=n, ep=n, attention=CP, **fields),
        Layout(sp=n, attention=CP, ffn=TP_FFN, **fields),
    ]


VISITS = Dispatch.DEDUPLICATED
FOLDED = [
    Layout(sp=4, ep=2, dispatch=VISITS),  # four experts a rank: tokens that stay together
    Layout(sp=2, dp=2, ep=4, dispatch=VISITS),
    Layout(sp=2, dp=2, attention=TP, ffn=TP_FFN),
    Layout(sp=2, dp=2, ep=4, attention=TP),  # ep > sp
    Layout(sp=4, dp=2, ep=2, attention=TP),  # ep < sp, experts replicated four times
    Layout(sp=2, dp=2, ep=4, attention=CP),
    Layout(sp=8, attention=CP),  # more ranks than heads
]


def plan_of(layout: Layout, rank: int, *, family: str = "mixtral", **fields) -> Plan:
    return models.plan(ALL[family], layout, rank, order="overlapped", **fields)


def work(family: str, steps: int = STEPS) -> Work:
    return Work(batches=partial(models.batches, ALL[family]), steps=steps)


def hard(step: int, micro_batch: int, layer: int):
    """Another generator each step."""
    shape, names = models.FAMILIES["mixtral"].shape, list(routing.GENERATORS)
    seed = 100 * step + 10 * micro_batch + layer
    tokens = models.SEQUENCE * models.MICRO_BATCH
    return routing.GENERATORS[names[step - 1]](tokens, shape.experts, shape.top_k, seed)


HARD = Work(
    batches=partial(models.batches, models.FAMILIES["mixtral"]),
    steps=len(routing.GENERATORS),
    routing=hard,
)


@cache
def one_rank(family: str) -> Trace:
    return run_layout(partial(plan_of, family=family), Layout(), work(family), bodies=BODIES)


@cache
def one_rank_routed() -> Trace:
    return run_layout(partial(plan_of, replay=True), Layout(), HARD, bodies=BODIES)


@pytest.mark.parametrize("layout", both(2), ids=Layout.name)
@pytest.mark.parametrize("family", ["qwen3", "deepseek", "qwen2"])
def test_two_ranks_train_what_one_trains(family, layout):
    found = run_layout(partial(plan_of, family=family), layout, work(family), bodies=BODIES)
    require_agreement(found, one_rank(family))
    assert compare(found.state, one_rank(family).state).error < 1e-8


@pytest.mark.parametrize("layout", [*both(4), *FOLDED], ids=Layout.name)
def test_four_ranks_that_share_key_and_value_heads_train_what_one_trains(layout):
    found = run_layout(partial(plan_of, family="deepseek"), layout, work("deepseek"), bodies=BODIES)
    require_agreement(found, one_rank("deepseek"))


@pytest.mark.parametrize("layout", [*both(4), Layout(sp=2, ep=2, dispatch=VISITS)], ids=Layout.name)
def test_combinations_agree_under_hard_routing(layout):
    found = run_layout(partial(plan_of, replay=True), layout, HARD, bodies=BODIES)
    require_agreement(found, one_rank_routed())


@pytest.mark.parametrize("layout", [*both(2), Layout(sp=2, ep=2, dispatch=VISITS)], ids=Layout.name)
def test_the_overlapped_order_gives_the_bits_of_the_serial_one(layout):
    plans, short = partial(plan_of, family="deepseek"), work("deepseek", steps=1)
    overlapped = run_layout(plans, layout, short, bodies=BODIES)
    assert (
        first_difference(run_layout(plans, layout, short, bodies=BODIES, order=serial), overlapped)
        is None
    )

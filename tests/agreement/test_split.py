"""Pairs in chunks: the bits of the same chunks one after another, in any order, and the losses and
gradients of one rank in float64, under any routing; the wire carries what was predicted.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import pytest

from weft.comm.transport import Transport
from weft.comm.transports.counting import CountingTransport
from weft.compose.order import searched
from weft.compose.plan import Plan
from weft.compose.price import nominal_pricing
from weft.data.batches import MicroBatch
from weft.errors import VerificationError
from weft.graph.program import Program, Task
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.action import Ordered
from weft.schedule.decompose import BACKWARD, FORWARD
from weft.schedule.layer import serial, shuffled
from weft.testing import models, routing
from weft.testing.agreement import (
    Routing,
    Trace,
    Work,
    first_difference,
    require_agreement,
    run_layout,
    stack,
    train_step,
)
from weft.testing.wire import predict

GATHER = Dispatch.ALL_GATHER
LAYOUTS = {
    "exchange": Layout(sp=2, ep=2),
    "gather": Layout(sp=2, ep=2, dispatch=GATHER),
    "wide": Layout(sp=4, ep=4),
    "wide gather": Layout(sp=4, ep=4, dispatch=GATHER),
    "folded": Layout(dp=2, ep=2),
    "folded gather": Layout(dp=2, ep=2, dispatch=GATHER),
}
SMALL = ("exchange", "gather")
PAIRS = (*FORWARD, *BACKWARD)
MODELS = {**models.FAMILIES, **models.VARIANTS}
BODIES = reference_bodies()
AT = pytest.mark.parametrize("at", LAYOUTS)
STEPS = 2
MICRO_BATCHES = 2  # half of the usual ones: the second is added to the first


def batches(family: str, step: int) -> Sequence[MicroBatch]:
    return models.batches(MODELS[family], step)[:MICRO_BATCHES]


def plans(family: str, **overlap) -> Callable[[Layout, int], Plan]:
    def plan_of(layout: Layout, rank: int) -> Plan:
        whole = models.plan(MODELS[family], layout, rank)
        return replace(whole, **{"micro_batches": MICRO_BATCHES, **overlap})

    return plan_of


def run(family: str, layout: Layout, *, by=None, forced: Routing | None = None, **overlap) -> Trace:
    work = Work(batches=partial(batches, family), steps=STEPS, routing=forced)
    return run_layout(plans(family, **overlap), layout, work, bodies=BODIES, order=by)


def forced(generator: str) -> Routing:
    shape, tokens = models.FAMILIES["mixtral"].shape, models.SEQUENCE * models.MICRO_BATCH

    def choices(step: int, micro_batch: int, layer: int):
        seed = 100 * step + 10 * micro_batch + layer
        return routing.GENERATORS[generator](tokens, shape.experts, shape.top_k, seed)

    return choices


@cache
def one_rank(family: str, generator: str | None = None) -> Trace:
    choices = forced(generator) if generator else None
    return run(family, Layout(), forced=choices, replay=generator is not None)


@cache
def in_turn(family: str, at: str, chunks: int = 2) -> Trace:
    """The same chunks one operator after the other."""
    return run(family, LAYOUTS[at], split=PAIRS, chunks=chunks)


@cache
def uncut(at: str) -> Trace:
    return run("mixtral", LAYOUTS[at])


@AT
@pytest.mark.parametrize("family", models.FAMILIES)
def test_chunks_train_what_one_rank_trains(family, at):
    require_agreement(in_turn(family, at), one_rank(family))


@pytest.mark.parametrize("at", SMALL)
@pytest.mark.parametrize("family", models.VARIANTS)
def test_what_a_family_adds_is_cut_like_the_rest(family, at):
    require_agreement(in_turn(family, at), one_rank(family))


@pytest.mark.parametrize("at", SMALL)
@pytest.mark.parametrize("pair", PAIRS)
def test_each_pair_alone_is_within_rounding_of_the_uncut_one(pair, at):
    require_agreement(run("mixtral", LAYOUTS[at], split=(pair,), chunks=4), uncut(at))


@AT
@pytest.mark.parametrize("generator", routing.GENERATORS)
def test_chunks_agree_under_any_routing(generator, at):
    found = run(
        "mixtral", LAYOUTS[at], forced=forced(generator), replay=True, split=PAIRS, chunks=4
    )
    require_agreement(found, one_rank("mixtral", generator))


@pytest.mark.parametrize("at", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_random_orders_of_chunks_give_the_same_bits(seed, at):
    found = run("mixtral", LAYOUTS[at], by=partial(shuffled, seed=seed), split=PAIRS)
    assert first_difference(found, in_turn("mixtral", at)) is None


@AT
@pytest.mark.parametrize("order", ["overlapped", "paper"])
@pytest.mark.parametrize("chunks", [2, 4])
def test_overlapped_chunks_give_the_same_bits(chunks, order, at):
    found = run("mixtral", LAYOUTS[at], split=PAIRS, chunks=chunks, order=order)
    assert first_difference(found, in_turn("mixtral", at, chunks)) is None


@pytest.mark.parametrize("at", SMALL)
def test_a_searched_order_of_chunks_gives_the_same_bits(at):
    plan = plans("mixtral", split=PAIRS)(LAYOUTS[at], 0)
    order = partial(searched, plan=plan, pricing=nominal_pricing(), timings=60)
    found = run("mixtral", LAYOUTS[at], by=order, split=PAIRS)
    assert first_difference(found, in_turn("mixtral", at)) is None


@pytest.mark.parametrize("at", SMALL)
@pytest.mark.parametrize("remat", ["selective", "full", ("y", "s_2")], ids=str)
def test_chunks_agree_with_what_is_made_again_whole(remat, at):
    found = run("qwen3", LAYOUTS[at], split=PAIRS, remat=remat)
    require_agreement(found, one_rank("qwen3"))


@pytest.mark.parametrize("at", SMALL)
@pytest.mark.parametrize("family", models.FAMILIES)
def test_layers_woven_together_give_the_same_bits(family, at):
    woven = run(family, LAYOUTS[at], split=PAIRS, across=True, merge=True, order="overlapped")
    assert first_difference(woven, in_turn(family, at)) is None


# ---- capacity, pipelines -------------------------------------------------------------------------


@pytest.mark.parametrize("at", SMALL)
def test_chunks_of_choices_within_a_capacity_agree(at):
    model = MODELS["mixtral"]
    balance = replace(model.arithmetic.balance, capacity=0.6, device_groups=2)
    tight = replace(model.arithmetic, balance=balance)
    found, one = (
        run("mixtral", layout, arithmetic=tight, split=split)
        for layout, split in ((LAYOUTS[at], PAIRS), (Layout(), ()))
    )
    assert any(value.sum() > 0 for name, value in one.sums.items() if "dropped" in name)
    require_agreement(found, one)


@pytest.mark.parametrize("at", SMALL)
def test_chunks_agree_where_weight_gradients_are_put_off(at):
    layout = replace(LAYOUTS[at], pp=2, pipeline="zero_bubble")
    found = run("mixtral", layout, split=PAIRS, order="overlapped")
    require_agreement(found, one_rank("mixtral"))


# ---- bytes ---------------------------------------------------------------------------------------


@AT
@pytest.mark.parametrize("overlap", [{}, {"across": True}, {"merge": True}], ids=str)
def test_every_rank_receives_the_bytes_that_its_chunks_predict(overlap, at):
    counters: list[CountingTransport] = []

    def counted(transport: Transport) -> CountingTransport:
        counters.append(CountingTransport(transport))
        return counters[-1]

    each = models.MICRO_BATCHES  # all of them: two a rank where the layout is folded, to be merged
    plan_of = plans("mixtral", split=PAIRS, chunks=4, replay=True, micro_batches=each, **overlap)
    ranks = stack(plan_of, LAYOUTS[at], bodies=BODIES, wire=counted)
    choices = forced("skewed")
    work = Work(batches=partial(models.batches, MODELS["mixtral"]), steps=1, routing=choices)
    train_step(ranks, work, 1)
    for stage, counter in zip(ranks.stages, counters, strict=True):
        predicted = Counter(predict(stage.step, lambda m, layer: choices(1, m, layer)))
        assert Counter(counter.counts()) == predicted


# ---- sabotage ------------------------------------------------------------------------------------


def swapped(program: Program) -> Ordered:
    """Sabotage: chunks are joined in another order."""

    def mistaken(task: Task) -> Task:
        match task.body:
            case "join_chunks" | "join_blocks":
                return replace(task, inputs=task.inputs[::-1])
            case "merge_rows":
                return replace(task, inputs=(task.inputs[0], *task.inputs[:0:-1]))
            case _:
                return task

    return serial(replace(program, tasks=tuple(map(mistaken, program.tasks))))


def dropped(program: Program) -> Ordered:
    """Sabotage: the first chunk is worked on twice and the last one never."""

    def mistaken(task: Task) -> Task:
        cuts = task.body in ("slice_chunk", "take_blocks")
        if not cuts or program.values[task.inputs[0]].kind == "i64":
            return task
        return replace(task, attributes={**task.attributes, "chunk": 0})

    return serial(replace(program, tasks=tuple(map(mistaken, program.tasks))))


@pytest.mark.parametrize("at", SMALL)
@pytest.mark.parametrize("pair", PAIRS)
def test_chunks_that_change_places_are_told_apart(pair, at):
    found = run("mixtral", LAYOUTS[at], by=swapped, split=(pair,))
    with pytest.raises(VerificationError, match="found a relative error"):
        require_agreement(found, one_rank("mixtral"))


@pytest.mark.parametrize("at", SMALL)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_chunk_that_is_lost_is_told_apart(pair, at):
    found = run("mixtral", LAYOUTS[at], by=dropped, split=(pair,))
    with pytest.raises(VerificationError, match="found a relative error"):
        require_agreement(found, one_rank("mixtral"))

"""Layers braided across segments and micro-batches, in any order: the bits of the plain step."""

from dataclasses import replace
from functools import partial

import pytest

from weft.compose.order import searched
from weft.compose.plan import Plan
from weft.compose.price import nominal_pricing
from weft.graph.program import Program, Task
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.action import Ordered
from weft.schedule.layer import serial, shuffled
from weft.testing import models
from weft.testing.agreement import Trace, Work, first_difference, run_layout

LAYOUTS = {
    "one rank": Layout(),
    "all_to_all": Layout(sp=2, ep=2),
    "all_gather": Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER),
    "folded": Layout(dp=2, sp=2, ep=4),
}
OVERLAPS = {
    "across": {"across": True},
    "merge": {"merge": True},
    "both": {"across": True, "merge": True, "remat": "selective"},
}
BODIES = reference_bodies()


def run(family: str, at: str, *, by=None, **overlap) -> Trace:
    model = models.FAMILIES[family]

    def plan_of(layout: Layout, rank: int) -> Plan:
        return replace(models.plan(model, layout, rank), **overlap)

    work = Work(batches=partial(models.batches, model), steps=2)
    return run_layout(plan_of, LAYOUTS[at], work, bodies=BODIES, order=by)


@pytest.fixture(scope="module")
def references() -> dict[tuple[str, str], Trace]:
    cases = [("mixtral", at) for at in LAYOUTS] + [(f, "all_to_all") for f in models.FAMILIES]
    return {(family, at): run(family, at) for family, at in cases}


@pytest.mark.parametrize("at", LAYOUTS)
@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("order", ["serial", "overlapped", "paper"])
def test_woven_segments_give_the_bits_of_plain_ones(order, overlap, at, references):
    found = run("mixtral", at, **{**OVERLAPS[overlap], "order": order})
    assert first_difference(found, references["mixtral", at]) is None


@pytest.mark.parametrize("family", ["qwen3", "deepseek"])
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_they_do_in_every_family(overlap, family, references):
    found = run(family, "all_to_all", **{**OVERLAPS[overlap], "order": "overlapped"})
    assert first_difference(found, references[family, "all_to_all"]) is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_random_orders_of_woven_segments_give_the_same_bits(overlap, seed, references):
    found = run("mixtral", "all_gather", by=partial(shuffled, seed=seed), **OVERLAPS[overlap])
    assert first_difference(found, references["mixtral", "all_gather"]) is None


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_a_searched_order_gives_the_same_bits(overlap, references):
    plan = models.plan(models.mixtral_like(), LAYOUTS["all_to_all"])
    order = partial(searched, plan=plan, pricing=nominal_pricing(), timings=60)
    found = run("mixtral", "all_to_all", by=order, **OVERLAPS[overlap])
    assert first_difference(found, references["mixtral", "all_to_all"]) is None


def crossed(program: Program) -> Ordered:
    """The sabotage control: the forward of a pair reads the residual of the other micro-batch."""

    def mistaken(task: Task) -> Task:
        if task.name == "f.rms_norm" and "b.x" in program.inputs:
            return replace(task, inputs=("b.x", *task.inputs[1:]))
        return task

    return serial(replace(program, tasks=tuple(map(mistaken, program.tasks))))


def test_micro_batches_that_mix_are_told_apart(references):
    found = run("mixtral", "all_to_all", by=crossed, merge=True)
    assert first_difference(found, references["mixtral", "all_to_all"]) is not None

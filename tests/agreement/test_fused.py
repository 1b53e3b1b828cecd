"""A step by fused operators has the bits of the step by their parts: losses, gradients, state."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from weft.compose.plan import Crossings, Plan
from weft.compose.step import training_step
from weft.graph.fused import FUSED
from weft.graph.program import Program
from weft.ops.fused import sequences
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
    "deduplicated": Layout(sp=2, ep=2, dispatch=Dispatch.DEDUPLICATED),
    "zero bubble": Layout(pp=2, pipeline="zero_bubble"),
}
ALL = tuple(FUSED)
PARTS = {  # what a machine might offer: directions alone, and what needs no gather
    "forward": [name for name in ALL if "." not in name],
    "backward": [name for name in ALL if "." in name],
    "no gather": ["up_swiglu", "swiglu_down.dgrad"],
    "weights": [name for name in ALL if name.endswith("wgrad")],
}
BODIES = {**reference_bodies(), **sequences(reference_bodies())}


def run(
    family: str,
    at: str,
    fused: Sequence[str] = (),
    *,
    remat="none",
    order=None,
    capacity: float = 0.0,
    crossings: Crossings | None = None,
    bodies=BODIES,
) -> Trace:
    model = models.FAMILIES[family]

    def plan_of(layout: Layout, rank: int) -> Plan:
        plan = models.plan(model, layout, rank)
        balance = replace(plan.arithmetic.balance, capacity=capacity)
        return replace(
            plan,
            fused=tuple(fused),
            remat=remat,
            crossings=crossings or Crossings(),
            arithmetic=replace(plan.arithmetic, balance=balance),
        )

    work = Work(batches=partial(models.batches, model), steps=2)
    return run_layout(plan_of, LAYOUTS[at], work, bodies=bodies, order=order)


def bodies_of(family: str, at: str, fused: Sequence[str]) -> set[str]:
    """The fused bodies that a step of a layout calls."""
    plan = replace(models.plan(models.FAMILIES[family], LAYOUTS[at]), fused=tuple(fused))
    programs = (ordered.program for ordered in training_step(plan).templates.values())
    return {task.body for program in programs for task in program.tasks} & set(FUSED)


@pytest.fixture(scope="module")
def references() -> dict[tuple[str, str], Trace]:
    return {
        **{("mixtral", at): run("mixtral", at) for at in LAYOUTS},
        **{(family, "all_to_all"): run(family, "all_to_all") for family in models.FAMILIES},
    }


@pytest.mark.parametrize("at", LAYOUTS)
def test_every_way_of_dispatch_has_fused_operators(at):
    assert bodies_of("mixtral", at, ALL)


@pytest.mark.parametrize("at", LAYOUTS)
@pytest.mark.parametrize("remat", ["none", "selective", "full"])
def test_fused_operators_give_the_bits_of_their_parts(remat, at, references):
    found = run("mixtral", at, ALL, remat=remat)
    assert first_difference(found, references["mixtral", at]) is None


@pytest.mark.parametrize("family", models.FAMILIES)
def test_they_give_the_same_bits_in_every_family(family, references):
    found = run(family, "all_to_all", ALL)
    assert first_difference(found, references[family, "all_to_all"]) is None


@pytest.mark.parametrize("at", ["one rank", "all_to_all"])
@pytest.mark.parametrize("offered", PARTS)
def test_a_machine_that_offers_some_gets_the_same_bits(offered, at, references):
    found = run("mixtral", at, PARTS[offered])
    assert first_difference(found, references["mixtral", at]) is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("at", ["one rank", "all_gather"])
def test_random_orders_give_the_same_bits(at, seed, references):
    found = run("mixtral", at, ALL, order=partial(shuffled, seed=seed))
    assert first_difference(found, references["mixtral", at]) is None


def test_a_capacity_gives_the_same_bits():
    found, wanted = (run("mixtral", "one rank", names, capacity=1.1) for names in (ALL, ()))
    assert first_difference(found, wanted) is None


def test_crossings_in_eight_bits_give_the_same_bits():
    crossings = Crossings(dispatch="fp8", combine="fp8", dispatch_grad="fp8", combine_grad="fp8")
    found, wanted = (run("mixtral", "all_to_all", n, crossings=crossings) for n in (ALL, ()))
    assert first_difference(found, wanted) is None


def misled(program: Program) -> Ordered:
    """The sabotage control: a fused operator is handed the row map of the way back."""

    def mistaken(task):
        if task.body == "reorder_up_swiglu":
            rows, order, inverse, *others = task.inputs
            return replace(task, inputs=(rows, inverse, order, *others))
        return task

    return serial(replace(program, tasks=tuple(map(mistaken, program.tasks))))


def test_rows_read_by_another_map_are_told_apart(references):
    found = run("mixtral", "all_to_all", ALL, order=misled)
    assert first_difference(found, references["mixtral", "all_to_all"]) is not None

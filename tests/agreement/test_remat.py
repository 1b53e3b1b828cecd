"""What is made again has the bits of what was kept: losses, gradients and state of two steps."""

from dataclasses import replace
from functools import partial

import pytest

from weft.compose.plan import Plan
from weft.graph.program import Program, Task
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.action import Ordered
from weft.schedule.layer import serial, shuffled
from weft.schedule.remat import is_again
from weft.testing import models
from weft.testing.agreement import Trace, Work, first_difference, run_layout

LAYOUTS = {
    "one rank": Layout(),
    "all_to_all": Layout(sp=2, ep=2),
    "all_gather": Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER),
    "folded": Layout(dp=2, sp=2, ep=4, dispatch=Dispatch.ALL_GATHER),
}
POLICIES = ("selective", "full", ("y", "s_2"))
BODIES = reference_bodies()


def run(family: str, layout: Layout, *, remat="none", order=None, recipe: str = "serial") -> Trace:
    model = models.FAMILIES[family]

    def plan_of(at: Layout, rank: int) -> Plan:
        return replace(models.plan(model, at, rank, order=recipe), remat=remat)

    work = Work(batches=partial(models.batches, model), steps=2)
    return run_layout(plan_of, layout, work, bodies=BODIES, order=order)


@pytest.fixture(scope="module")
def references() -> dict[tuple[str, str], Trace]:
    return {
        **{
            (family, "all_to_all"): run(family, LAYOUTS["all_to_all"]) for family in models.FAMILIES
        },
        **{("mixtral", at): run("mixtral", layout) for at, layout in LAYOUTS.items()},
    }


@pytest.mark.parametrize("at", LAYOUTS)
@pytest.mark.parametrize("remat", POLICIES, ids=str)
def test_a_policy_gives_the_bits_of_keeping_everything(remat, at, references):
    found = run("mixtral", LAYOUTS[at], remat=remat)
    assert first_difference(found, references["mixtral", at]) is None


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("remat", POLICIES[:2])
def test_a_policy_gives_the_same_bits_in_every_family(remat, family, references):
    found = run(family, LAYOUTS["all_to_all"], remat=remat)
    assert first_difference(found, references[family, "all_to_all"]) is None


@pytest.mark.parametrize("seed", range(4))
def test_random_orders_of_a_rematerialised_step_give_the_same_bits(seed, references):
    found = run("mixtral", LAYOUTS["all_gather"], remat="full", order=partial(shuffled, seed=seed))
    assert first_difference(found, references["mixtral", "all_gather"]) is None


def test_the_overlapped_order_of_a_rematerialised_step_gives_the_same_bits(references):
    found = run("mixtral", LAYOUTS["all_gather"], remat="selective", recipe="overlapped")
    assert first_difference(found, references["mixtral", "all_gather"]) is None


def stale(program: Program) -> Ordered:
    """The sabotage control: the second norm is made again from the layer's input."""

    def mistaken(task: Task) -> Task:
        if is_again(task) and task.inputs[0] == "s":
            return replace(task, inputs=("x", *task.inputs[1:]))
        return task

    return serial(replace(program, tasks=tuple(map(mistaken, program.tasks))))


@pytest.mark.parametrize("at", LAYOUTS)
def test_a_value_made_again_from_a_stale_one_is_told_apart(at, references):
    found = run("mixtral", LAYOUTS[at], remat="selective", order=stale)
    assert first_difference(found, references["mixtral", at]) is not None

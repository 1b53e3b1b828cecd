"""The paper's order by hand: what it shows stands where it shows it."""

from collections.abc import Collection
from dataclasses import replace

import pytest

from weft.compose.step import training_step
from weft.graph.fused import FUSED
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.action import Ordered, Post, Run, Wait
from weft.schedule.check import check
from weft.schedule.paper import BACKWARD, FORWARD, paper
from weft.schedule.sequence import task_key
from weft.testing import models

LAYOUTS = (
    Layout(),
    Layout(sp=2, ep=2),
    Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER),
    Layout(sp=2, ep=1),
)


def programs(
    family: str,
    layout: Layout,
    remat: str = "selective",
    fused: Collection[str] = (),
    split: tuple[str, ...] = (),
):
    shape = models.FAMILIES[family]
    plan = replace(models.plan(shape, layout), remat=remat, fused=tuple(fused), split=split)
    return {name: o.program for name, o in training_step(plan).templates.items()}


def backward(dispatch: Dispatch, fused=()) -> Ordered:
    layout = Layout(sp=2, ep=2, dispatch=dispatch)
    found = paper(programs("mixtral", layout, fused=fused)["moe.backward"])
    assert found is not None
    return check(found)


def flight(ordered: Ordered, key: str) -> list[str]:
    """What runs while a collective is in flight."""
    actions = [a for a in ordered.actions if isinstance(a, Run | Post | Wait)]
    post = next(i for i, a in enumerate(actions) if isinstance(a, Post) and task_key(a.task) == key)
    wait = actions.index(Wait(actions[post].task))
    return [task_key(a.task) for a in actions[post:wait] if isinstance(a, Run)]


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.name)
@pytest.mark.parametrize("remat", ["none", "selective", "full"])
def test_every_layer_has_a_legal_order(family, layout, remat):
    for name, program in programs(family, layout, remat).items():
        found = paper(program)
        is_layer = name.endswith(("moe.forward", "moe.backward", "dense.forward", "dense.backward"))
        assert (found is not None) == is_layer
        if found is not None:
            check(found)


def test_the_gradient_gathers_while_norm_and_swiglu_run_again():
    assert flight(backward(Dispatch.ALL_GATHER), "all_gather outputs") == [
        "again rms_norm norm2", "again swiglu",
    ]  # fmt: skip


def test_the_tokens_gather_again_under_scatter_and_the_second_product():
    under = flight(backward(Dispatch.ALL_GATHER), "again all_gather tokens")
    assert under[:3] == ["gather_sum.dgrad", "expert_down.dgrad down", "expert_down.wgrad down"]


@pytest.mark.parametrize(
    ("transfer", "filler"),
    [
        ("reduce_scatter tokens", "expert_up.wgrad up"),
        ("all_to_all attention", "project.wgrad out"),
        ("all_to_all qkv", "again rms_norm norm1"),
    ],
)
def test_each_later_transfer_has_something_to_run_under(transfer, filler):
    assert filler in flight(backward(Dispatch.ALL_GATHER), transfer)


def test_rows_that_travel_again_hide_under_the_second_product():
    under = flight(backward(Dispatch.ALL_TO_ALL), "again all_to_all_rows rows")
    assert "expert_down.dgrad down" in under


def test_a_fused_weight_gradient_stands_where_its_parts_did():
    order = backward(Dispatch.ALL_GATHER, FUSED)
    assert "permute_up.wgrad up" in flight(order, "reduce_scatter tokens")


def test_every_line_of_the_lists_is_a_task_of_some_layer():
    known = {
        task_key(task)
        for family in models.FAMILIES
        for layout in LAYOUTS
        for remat in ("selective", "full")
        for ways in (
            {},
            {"fused": FUSED},
            {"fused": ("up_swiglu", "swiglu_down.dgrad")},
            {"split": ("dispatch",)},
        )
        for program in programs(family, layout, remat, **ways).values()
        for task in program.tasks
    }
    lines = [line.strip() for line in (FORWARD + BACKWARD).split("\n") if line.strip()]
    assert [line for line in lines if line not in known] == []


def test_small_gathers_go_between_the_chunks_of_the_tokens():
    split = ("dispatch",)
    found = paper(programs("mixtral", LAYOUTS[2], split=split)["moe.forward"])
    posts = [a.task for a in found.actions if isinstance(a, Post) and a.task.group == "ep"]
    assert [task.attributes["label"] for task in posts] == [
        "tokens", "experts", "weights", "tokens", "outputs",
    ]  # fmt: skip


def test_other_segments_have_no_order_of_the_paper():
    assert paper(programs("mixtral", Layout())["update"]) is None

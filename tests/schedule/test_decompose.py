"""Pairs in chunks: what is cut, what stays whole, and in which order a group meets."""

from collections import Counter
from dataclasses import replace

import pytest

from weft.compose.plan import Plan, sizes
from weft.compose.price import BYTES, flops, wire_bytes
from weft.compose.step import training_step
from weft.compose.templates import evaluation_programs, training_programs
from weft.errors import ProgramError
from weft.graph.opset import Lane
from weft.graph.program import Program
from weft.graph.record import Recorder
from weft.graph.render import render_program
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.action import is_collective
from weft.schedule.check import check
from weft.schedule.decompose import BACKWARD, FORWARD, Chunks, decompose
from weft.schedule.layer import overlapped, serial, shuffled
from weft.schedule.paper import paper
from weft.schedule.sequence import CHUNK, starts
from weft.testing import models

GATHER, EXCHANGE = Dispatch.ALL_GATHER, Dispatch.ALL_TO_ALL
ALL = (*FORWARD, *BACKWARD)
BOTH = pytest.mark.parametrize("dispatch", [GATHER, EXCHANGE])
EACH = pytest.mark.parametrize("pair", ALL)


def plan(dispatch: Dispatch, **changes: object) -> Plan:
    made = models.plan(models.mixtral_like(), Layout(sp=2, ep=2, dispatch=dispatch))
    return replace(made, **changes)


def program(dispatch: Dispatch, name: str = "moe.forward", **changes: object) -> Program:
    return training_programs(plan(dispatch, **changes))[name]


def labels(of: Program) -> Counter[str]:
    return Counter(str(t.attributes["label"]) for t in of.tasks if is_collective(t))


@BOTH
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_layer_in_chunks_reads_as_its_golden_text(direction, dispatch, golden):
    cut = program(dispatch, f"moe.{direction}", split=ALL)
    golden(f"moe.{direction}.split.{dispatch.value}", render_program(cut))


@BOTH
@pytest.mark.parametrize("chunks", [2, 4])
def test_every_crossing_is_cut_and_carries_the_same_bytes(chunks, dispatch):
    whole = plan(dispatch)
    cut = replace(whole, split=ALL, chunks=chunks)
    for name in ("moe.forward", "moe.backward"):
        before, after = (training_programs(p)[name] for p in (whole, cut))
        carried = [Counter[str](), Counter[str]()]
        for made, total in zip((before, after), carried, strict=True):
            for task in filter(is_collective, made.tasks):
                size = wire_bytes(task, made, sizes(whole), BYTES)
                total[f"{task.body} {task.attributes['label']}"] += size
        again = "all_to_all_counts counts"  # of the whole and of each chunk
        assert carried[1].pop(again, 0) == (chunks + 1) * carried[0].pop(again, 0)
        assert carried[0] == carried[1]


@EACH
@BOTH
def test_each_pair_is_cut_by_itself(dispatch, pair):
    pairs = {**FORWARD, **BACKWARD}
    crossing = {label for _, label in pairs[pair].crossings}
    name = "moe.forward" if pair in FORWARD else "moe.backward"
    before, after = labels(program(dispatch, name)), labels(program(dispatch, name, split=(pair,)))
    grown = {label for label in after if after[label] > before[label]}
    assert grown - {"counts"} == crossing & before.keys()


@BOTH
def test_what_is_kept_and_what_leaves_are_what_they_were(dispatch):
    for name in ("moe.forward", "moe.backward"):
        before, after = program(dispatch, name), program(dispatch, name, split=ALL)
        assert (after.inputs, after.outputs, after.kept) == (
            before.inputs, before.outputs, before.kept,
        )  # fmt: skip
        assert all(after.values[v] == before.values[v] for v in (*before.outputs, *before.kept))


@BOTH
def test_the_host_waits_as_often_as_before(dispatch):
    for made in (program(dispatch), program(dispatch, split=ALL, chunks=4)):
        assert sum(task.lane is Lane.HOST for task in made.tasks) == 1


@BOTH
def test_products_have_the_work_they_had(dispatch):
    n = sizes(plan(dispatch))
    for name in ("moe.forward", "moe.backward"):
        work = [Counter[str](), Counter[str]()]
        for made, total in zip(
            (program(dispatch, name), program(dispatch, name, split=ALL)), work, strict=True
        ):
            for task in made.tasks:
                if task.op.weights:
                    total[task.body] += flops(task, n)
        assert work[0] == work[1]


@BOTH
def test_a_product_runs_under_the_collective_of_another_chunk(dispatch):
    cut = program(dispatch, split=ALL)
    order = [task.name for task in starts(overlapped(cut, lambda _: 1.0))]
    assert order.index("all_to_all/0") < order.index("qkv_project/1") < order.index("all_to_all/1")
    assert order.index("all_to_all_2/1") < order.index("project/0")
    arriving = "all_gather/1" if dispatch is GATHER else "all_to_all_rows/1"
    assert order.index(arriving) < order.index("expert_up/0")
    leaving = "reduce_scatter" if dispatch is GATHER else "all_to_all_rows_2"
    assert order.index(f"{leaving}/0") < order.index("expert_down/1")


@BOTH
@pytest.mark.parametrize("seed", range(5))
def test_every_order_of_chunks_is_legal(seed, dispatch):
    for name in ("moe.forward", "moe.backward"):
        cut = program(dispatch, name, split=ALL, remat="selective")
        check(shuffled(cut, seed))
        check(serial(cut))
        check(paper(cut))


@BOTH
def test_what_is_made_again_crosses_whole(dispatch):
    cut = program(dispatch, "moe.backward", split=ALL, remat="full")
    again = [t for t in cut.tasks if is_collective(t) and t.name.startswith("again.")]
    assert again
    assert not any(CHUNK in task.name for task in again)


def test_a_layout_without_a_crossing_has_nothing_to_cut():
    alone = models.plan(models.mixtral_like())
    assert training_programs(replace(alone, split=ALL)) == training_programs(alone)


def test_evaluation_is_cut_as_training_is():
    cut = evaluation_programs(plan(GATHER, split=ALL))["moe.forward"]
    assert [t.name for t in cut.tasks if t.body == "expert_up"] == ["expert_up/0", "expert_up/1"]


def test_rows_that_lie_by_rank_are_sent_whole_as_well_where_they_are_kept():
    """A list of `remat` may keep what only the whole exchange makes."""
    kept = program(EXCHANGE, split=ALL, remat=("out_3",))
    assert "out" in kept.kept
    assert [t.name for t in kept.tasks if t.attributes.get("label") == "rows"] == [
        "all_to_all_rows", "all_to_all_rows/0", "all_to_all_rows/1",
    ]  # fmt: skip


def test_a_collective_without_a_product_is_refused():
    o = Recorder("lonely.forward")
    (y,) = o.call("all_to_all", o.input("x", "N P"), axis="sp", label="qkv")
    chunks = Chunks(count=2, tokens=8, blocks={"N": 2})
    with pytest.raises(ProgramError, match="no product beside all_to_all"):
        decompose(o.finish(y), FORWARD["qkv"], chunks)


def test_a_step_in_chunks_is_checked_like_any():
    step = training_step(plan(GATHER, split=ALL, across=True, merge=True, order="overlapped"))
    assert any("expert_up/1" in t.name for o in step.templates.values() for t in o.program.tasks)

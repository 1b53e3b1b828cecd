"""Sequences become fused operators where nothing else reads what they hide, and only there."""

from dataclasses import replace

import pytest

from weft.compose import segment
from weft.compose.keep import held_bytes, rematerialised
from weft.compose.plan import Plan, sizes
from weft.compose.price import flops
from weft.compose.stage import owned
from weft.compose.templates import layer_weights
from weft.graph.backward import Differentiated, differentiate
from weft.graph.fused import FUSED
from weft.graph.program import Program
from weft.graph.record import Recorder
from weft.graph.render import render_program
from weft.model.families import Kind
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.fuse import fuse, fuse_program
from weft.testing import models

LAYOUTS = {
    "one_rank": Layout(),
    "all_to_all": Layout(sp=2, ep=2),
    "all_gather": Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER),
}


def layer(plan: Plan) -> Differentiated:
    plain = {k: segment.layer(plan, k, names) for k, names in layer_weights(owned(plan)).items()}
    made = rematerialised(plan, plain)[Kind.MOE]
    assert made.backward is not None
    return Differentiated(forward=made.forward, backward=made.backward)


def plan_of(at: str, *, fused=(), remat="none") -> Plan:
    plan = models.plan(models.mixtral_like(), LAYOUTS[at])
    return replace(plan, fused=tuple(fused), remat=remat)


def experts(*, extra: str = "") -> Program:
    """Rows, products and their sum alone; `extra` is a second reader of the rows."""
    o = Recorder("moe.forward")
    h, order, slot_row = (
        o.input("h", "T D"),
        o.input("order", "R", "i64"),
        o.input("at", "T k", "i64"),
    )
    up, down, ends = (
        o.input("w.up", "L 2F D"),
        o.input("w.down", "L D F"),
        o.input("ends", "L", "i32"),
    )
    weights = o.input("weights", "R", "acc")
    (rows,) = o.call("permute", h, order, slot_row, top_k=2)
    (u,) = o.call("expert_up", rows, up, ends)
    (s,) = o.call("swiglu", u, weights, ends)
    (d,) = o.call("expert_down", s, down, ends)
    (z,) = o.call("gather_sum", d, slot_row, order, top_k=2)
    more = o.call(extra, rows, slot_row, order, top_k=2) if extra else ()
    return o.finish(z, *more)


def bodies(program: Program) -> list[str]:
    return [task.body for task in program.tasks]


@pytest.mark.parametrize("at", LAYOUTS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_fused_layer_reads_as_its_golden_text(direction, at, golden):
    found = layer(plan_of(at, fused=FUSED, remat="selective"))
    golden(f"moe.{direction}.fused.{at}", render_program(getattr(found, direction)))


def test_an_offer_of_nothing_changes_nothing():
    derived = differentiate(experts())
    assert fuse(derived, ()) is derived
    assert fuse_program(derived.backward, ()) is derived.backward


def test_the_experts_become_four_fused_operators():
    found = fuse(differentiate(experts()), FUSED)
    assert bodies(found.forward) == ["permute_up_swiglu", "expert_down", "gather_sum"]
    assert bodies(found.backward) == [
        "swiglu_down_gather.dgrad",
        "down_gather.wgrad",
        "expert_up.dgrad",
        "permute_up.wgrad",
        "permute.dgrad",
    ]


def test_rows_that_another_reads_stay():
    """A sequence that hides what others read would leave them without; a shorter one is taken."""
    program = experts(extra="gather_sum")
    assert bodies(fuse_program(program, FUSED))[:2] == ["permute", "up_swiglu"]


def test_a_value_that_leaves_stays():
    derived = differentiate(experts())
    assert "rows" in derived.forward.kept
    found = fuse_program(derived.forward, FUSED)
    assert bodies(found)[:2] == ["permute", "up_swiglu"], "rows are kept: they are not hidden"


def test_a_copy_is_not_split_between_those_who_hide_it_and_others():
    """One reader of the gathered gradients fuses, the other has no fused form: both read rows."""
    found = fuse(differentiate(experts()), ["down_gather.wgrad"])
    assert "gather_sum.dgrad" in bodies(found.backward)
    assert "expert_down.wgrad" in bodies(found.backward)


def test_what_no_fused_task_makes_again_is_kept():
    found = fuse(differentiate(experts()), ["swiglu_down_gather.dgrad", "down_gather.wgrad"])
    assert "rows" in found.forward.kept
    assert "s" not in found.forward.kept


def test_a_copy_of_what_is_kept_anyway_is_made_again():
    """The router's gradient reads the tokens too: of them and the rows, one is enough."""
    plain, found = layer(plan_of("one_rank")), layer(plan_of("one_rank", fused=["up_swiglu"]))
    assert {"rows", "y_3"} <= set(plain.forward.kept)
    assert set(plain.forward.kept) - set(found.forward.kept) == {"rows"}
    again = next(i for i, t in enumerate(found.backward.tasks) if t.body == "permute")
    assert found.backward.tasks[again + 1].body == "expert_up.wgrad"


def test_a_sequence_that_would_read_its_own_result_is_left_alone():
    """Between two of its parts another task makes the last one's operand from the first one's."""
    o = Recorder("p")
    rows, w, ends = o.input("rows", "R D"), o.input("w", "L 2F D"), o.input("ends", "L", "i32")
    maps = o.input("order", "R", "i64"), o.input("inverse", "R", "i64")
    (u,) = o.call("expert_up", rows, w, ends)
    (weights,) = o.call("reorder_weights", u, *maps)
    (s,) = o.call("swiglu", u, weights, ends)
    program = o.finish(s)
    assert fuse_program(program, FUSED) is program


def test_what_is_read_early_is_made_early():
    """A fused task gives the weighted activation too, which a task before its last part reads."""
    found = fuse(differentiate(experts()), ["swiglu_down.dgrad"]).backward
    assert bodies(found)[:3] == ["gather_sum.dgrad", "swiglu_down.dgrad", "expert_down.wgrad"]


@pytest.mark.parametrize("at", LAYOUTS)
def test_a_fused_task_costs_the_flops_of_its_parts(at):
    """What is made again, the activation, is counted again."""
    plan = plan_of(at)
    n = sizes(plan)
    plain, found = layer(plan), layer(plan_of(at, fused=FUSED))
    before, after = (
        sum(flops(task, n) for task in (*one.forward.tasks, *one.backward.tasks))
        for one in (plain, found)
    )
    again = next(task for task in plain.forward.tasks if task.body == "swiglu")
    copies = sum(flops(task, n) for task in plain.backward.tasks if task.body == "gather_sum.dgrad")
    assert after - before == flops(again, n) + (0 if at == "all_to_all" else copies)


@pytest.mark.parametrize("at", ["one_rank", "all_gather"])
def test_nothing_of_the_size_of_rows_times_hidden_is_kept(at):
    """Without fused operators the rows of the experts and their activations are."""
    plain, found = layer(plan_of(at)), layer(plan_of(at, fused=FUSED))

    def wide(one: Differentiated) -> int:
        values = one.forward.values
        return sum(values[n].dims in ("R D", "O D", "R F") for n in one.forward.kept)

    assert (wide(plain), wide(found)) == (2, 0)
    assert "u" in found.forward.kept


def test_the_block_keeps_its_input_and_the_outputs_of_fc1_and_fc3():
    derived = fuse(differentiate(experts()), FUSED)
    values = derived.forward.values
    kept = {n for n in derived.backward.inputs if values.get(n) and values[n].kind == "act"}
    assert {n for n in kept if not n.startswith(("w.", "d."))} == {"h", "u"}


def test_fewer_bytes_are_held_under_every_policy():
    for remat in ("none", "selective", "full"):
        plan = plan_of("one_rank", remat=remat)
        plain = segment_of(plan)
        found = segment_of(replace(plan, fused=tuple(FUSED)))
        before, after = (sum(held_bytes(plan, one).values()) for one in (plain, found))
        assert after < before if remat == "none" else after <= before


def segment_of(plan: Plan) -> segment.Segment:
    plain = {k: segment.layer(plan, k, names) for k, names in layer_weights(owned(plan)).items()}
    return rematerialised(plan, plain)[Kind.MOE]

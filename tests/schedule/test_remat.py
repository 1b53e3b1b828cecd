"""A backward that makes values again: just before their readers, and never what may run once."""

import pytest

from weft.compose import segment
from weft.compose.keep import choose
from weft.compose.segment import Segment
from weft.errors import ProgramError
from weft.graph.backward import Differentiated, differentiate
from weft.graph.program import Program, Task
from weft.graph.record import Recorder
from weft.graph.render import render_program
from weft.model.families import Kind
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.action import is_collective
from weft.schedule.remat import is_again, is_effect, is_repeatable, recipes, rematerialise
from weft.testing import models

WEIGHTS = ("norm1", "qkv", "out", "norm2", "router", "up", "down")


def layer(dispatch: Dispatch = Dispatch.ALL_GATHER) -> Segment:
    plan = models.plan(models.mixtral_like(), Layout(sp=2, ep=2, dispatch=dispatch))
    return segment.layer(plan, Kind.MOE, WEIGHTS)


def derived(dispatch: Dispatch = Dispatch.ALL_GATHER) -> Differentiated:
    made = layer(dispatch)
    assert made.backward is not None
    return Differentiated(forward=made.forward, backward=made.backward)


def selective(dispatch: Dispatch = Dispatch.ALL_GATHER) -> Differentiated:
    plan = models.plan(models.mixtral_like(), Layout(sp=2, ep=2, dispatch=dispatch))
    return rematerialise(derived(dispatch), choose(plan, layer(dispatch), "selective").again)


def again(program: Program) -> list[str]:
    return [task.body for task in program.tasks if is_again(task)]


def position(program: Program, body: str) -> int:
    return next(i for i, task in enumerate(program.tasks) if task.body == body)


def test_a_selective_backward_reads_as_its_golden_text(golden):
    golden("moe.backward.selective.all_gather", render_program(selective().backward))


def test_nothing_again_is_the_same_program():
    assert rematerialise(derived(), ()) == derived()


def test_a_value_is_made_again_just_before_its_first_reader():
    found = rematerialise(derived(), {"s_2"})
    tasks = found.backward.tasks
    at = position(found.backward, "swiglu")
    assert tasks[at].outputs == ("s_2",)
    assert "s_2" in tasks[at + 1].inputs
    assert "s_2" not in found.forward.kept
    assert set(found.forward.kept) == {*derived().forward.kept} - {"s_2"}


def test_a_chain_is_made_from_its_start_and_each_link_once():
    assert again(selective().backward) == [
        "swiglu", "rms_norm", "all_gather", "permute", "all_to_all", "join_heads", "rms_norm",
    ]  # fmt: skip


def test_what_a_chain_starts_from_is_kept():
    found = rematerialise(derived(), {"rows_2"})
    assert "y_6" in found.forward.kept
    assert "rows_2" not in found.forward.kept


def test_a_weight_that_only_a_chain_reads_becomes_an_input():
    dropped = rematerialise(derived(), {"logits", "y_5"})
    assert again(dropped.backward).count("router_logits") == 1
    assert "w.router" in dropped.backward.inputs


def test_the_norm_of_the_kept_residual_needs_no_projection():
    backward = rematerialise(derived(), {"y_5", "rstd_2"}).backward
    (norm,) = [task for task in backward.tasks if is_again(task)]
    assert (norm.body, norm.inputs[0], norm.outputs) == ("rms_norm", "s", ("y_5", "rstd_2"))
    assert norm.attributes == {"eps": 1e-5}


def test_the_residual_itself_comes_with_its_norm_at_once():
    backward = rematerialise(derived(), {"s", "y_5", "rstd_2", "y_4"}).backward
    assert again(backward) == ["project", "add_rms_norm"]


def test_an_output_that_is_kept_all_the_same_gets_another_name():
    backward = rematerialise(derived(), {"y"}).backward
    (norm,) = [task for task in backward.tasks if is_again(task)]
    assert norm.outputs == ("y", "again.rstd")
    assert "rstd" in backward.inputs


def test_a_collective_that_runs_again_stands_between_the_others_of_its_group():
    issued = [
        (task.group, task.attributes["label"], is_again(task))
        for task in selective().backward.tasks
        if is_collective(task)
    ]
    assert [i[1:] for i in issued if i[0] == "ep"] == [
        ("outputs", False), ("tokens", True), ("tokens", False), ("weights", False),
    ]  # fmt: skip
    assert [i[1:] for i in issued if i[0] == "sp"] == [
        ("attention", True), ("attention", False), ("qkv", False),
    ]  # fmt: skip


@pytest.mark.parametrize("dispatch", Dispatch)
def test_effects_decisions_and_host_synchronisations_run_once(dispatch):
    forward = derived(dispatch).forward
    once = {task.body for task in forward.tasks if not is_repeatable(task)}
    plans = {"plan_rows", "plan_received", "all_to_all_counts", "splits_to_host"}
    if dispatch is Dispatch.ALL_GATHER:
        plans = {"plan_local", "count_local", "all_gather_experts", "rows_to_host"}
    if dispatch is Dispatch.DEDUPLICATED:
        plans = {
            "count_visits", "all_to_all_counts", "visits_to_host", "plan_visits",
            "all_to_all_choices", "plan_local",
        }  # fmt: skip
    assert once == {
        "select_experts", "count_load", "add_load", "sum_load", "router_losses", *plans,
    }  # fmt: skip
    everything = rematerialise(derived(dispatch), recipes(forward).keys())
    assert not once & set(again(everything.backward))


@pytest.mark.parametrize("body", ["router_losses", "add_load", "square_sum", "cross_entropy"])
def test_a_running_sum_is_an_effect(body):
    assert is_effect(Task(name="t", body=body, inputs=(), outputs=()))


@pytest.mark.parametrize("body", ["select_experts", "reorder_weights", "rms_norm", "sum_load"])
def test_what_adds_to_nothing_is_none(body):
    assert not is_effect(Task(name="t", body=body, inputs=(), outputs=()))


@pytest.mark.parametrize("name", ["experts", "total_3", "nothing"])
def test_what_may_not_be_made_again_is_refused_by_name(name):
    with pytest.raises(ProgramError, match=rf"{name} cannot be made again; what can: .*rows_2"):
        rematerialise(derived(), {name})


def test_gradients_are_the_same_whatever_is_kept():
    before, after = derived().backward, selective().backward
    assert after.outputs == before.outputs
    assert [t for t in after.tasks if not is_again(t)] == list(before.tasks)


def test_values_that_nothing_mentions_leave_the_program():
    found = rematerialise(derived(), {"s_2", "rows_2", "y_6"})
    mentioned = {v for t in found.backward.tasks for v in (*t.inputs, *t.outputs)}
    assert found.backward.values.keys() == mentioned | {*found.backward.inputs}


def test_an_input_that_is_an_output_stays_one():
    o = Recorder("p.forward")
    x, y = o.input("x", "T D"), o.input("y", "T D")
    (z,) = o.call("add", x, y)
    plain = differentiate(o.finish(z))
    assert rematerialise(plain, ()).backward == plain.backward

"""Segments woven together: what is moved, what is braided, and what is left alone."""

from dataclasses import replace

import pytest

from weft.compose.check import check_edges
from weft.compose.first import usual_of
from weft.compose.instance import Instance
from weft.compose.plan import Plan
from weft.compose.step import Step, training_step
from weft.compose.weave import opening, woven
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.action import Join, is_collective
from weft.testing import models

LAYOUTS = (Layout(sp=2, ep=2), Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER))
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.name)


def plan(family: str, layout: Layout | None = None, **changes) -> Plan:
    return replace(models.plan(models.FAMILIES[family], layout or LAYOUTS[0]), **changes)


def templates(step: Step) -> list[str]:
    return [instance.template for instance in step.instances]


def bodies(step: Step) -> list[str]:
    """Every task that a step runs, whatever segment it is in."""
    programs = {name: ordered.program for name, ordered in step.templates.items()}
    found = [task.body for i in step.instances for task in programs[i.template].tasks]
    return sorted(found)


def test_nothing_asked_for_is_nothing_woven():
    made = plan("mixtral")
    step = training_step(made)
    programs = {name: ordered.program for name, ordered in step.templates.items()}
    found = woven(made, programs, step.instances)
    assert (found.programs, found.instances) == (programs, step.instances)


@LAYOUT
@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize(
    "overlap", [{"across": True}, {"merge": True}, {"across": True, "merge": True}]
)
def test_a_woven_step_runs_the_same_tasks(overlap, family, layout):
    woven_step = training_step(plan(family, layout, **overlap))
    assert bodies(woven_step) == bodies(training_step(plan(family, layout)))


def test_backwards_in_a_row_hand_their_first_collective_on():
    step = training_step(plan("mixtral", across=True))
    assert templates(step)[3:8] == [
        "head", "moe.backward.first", "moe.backward.rest+moe.backward.first@first",
        "moe.backward.rest@first", "embedding.backward",
    ]  # fmt: skip


@LAYOUT
def test_a_braided_backward_leaves_the_next_first_collective_in_flight(layout):
    step = training_step(plan("mixtral", layout, across=True))
    braided = step.templates["moe.backward.rest+moe.backward.first"]
    made = braided.program.producer()
    (opened,) = braided.program.opens
    assert made[opened].attributes["label"] == "outputs"
    assert sum(isinstance(action, Join) for action in braided.actions) == 1


def test_merged_micro_batches_run_layers_in_pairs():
    step = training_step(plan("mixtral", merge=True))
    pair = "moe.backward+moe.forward"
    middle = ["embedding.forward", pair, pair, "embedding.backward", "head"]
    first = [f"{name}@first" if name == pair else name for name in middle]
    found = [name for name in templates(step) if not name.startswith("reduce.")]
    assert found == [
        "embedding.forward", "moe.forward", "moe.forward", "head",
        *first, *middle, *middle,
        "moe.backward", "moe.backward", "embedding.backward", "update",
    ]  # fmt: skip


def test_a_pair_reads_and_writes_what_its_two_layers_do():
    step = training_step(plan("mixtral", merge=True))
    pair = next(i for i in step.instances if "+" in i.template)
    assert pair.statics["w.b.qkv"] == "param:layers.1.qkv"
    assert pair.statics["w.f.qkv"] == "param:layers.0.qkv"
    assert pair.statics["acc.b.w.qkv"] == "grad:layers.1.qkv"
    assert {"m0.d.x.2", "m1.x.0"} <= set(pair.reads.values())
    assert {"m0.d.x.1", "m1.x.1"} <= set(pair.writes.values())


def test_collectives_of_both_take_turns():
    program = (
        training_step(plan("mixtral", merge=True)).templates["moe.backward+moe.forward"].program
    )
    issued = [t.name[0] for t in program.tasks if is_collective(t) and t.group == "ep"]
    assert issued != sorted(issued)
    assert issued != sorted(issued, reverse=True)


def test_kinds_of_layers_are_paired_as_they_meet():
    found = templates(training_step(plan("deepseek", merge=True)))
    assert {usual_of(t) for t in found if "+" in t} == {
        "shared_moe.backward+dense.forward", "shared_moe.backward+shared_moe.forward",
        "dense.backward+shared_moe.forward",
    }  # fmt: skip


def test_a_layer_whose_first_collective_takes_a_product_stays_whole():
    """A dense layer's first transfer comes after its feed-forward: no opening."""
    step = training_step(plan("deepseek"))
    assert opening(step.templates["dense.backward"].program) == ()
    found = templates(training_step(plan("deepseek", across=True)))
    assert "dense.backward" in found


def test_without_communication_nothing_is_divided():
    found = templates(training_step(plan("mixtral", Layout(), across=True)))
    assert found == templates(training_step(plan("mixtral", Layout())))


def test_what_shares_a_sum_with_the_next_forward_keeps_them_apart():
    made = plan("mixtral", merge=True)
    step = training_step(replace(made, merge=False))
    programs = {name: ordered.program for name, ordered in step.templates.items()}

    def shared(instance: Instance) -> Instance:
        if instance.template != "embedding.backward":
            return instance
        return replace(instance, statics={**instance.statics, "acc.more": "stats:losses"})

    found = woven(made, programs, tuple(map(shared, step.instances)))
    assert not any("+" in instance.template for instance in found.instances)


def test_woven_edges_are_legal():
    step = training_step(plan("mixtral", LAYOUTS[1], across=True, merge=True))
    programs = {name: ordered.program for name, ordered in step.templates.items()}
    check_edges(step.instances, programs, step.buckets)


def test_evaluation_is_not_woven():
    from weft.compose.step import evaluation_step

    found = templates(evaluation_step(plan("mixtral", across=True, merge=True)))
    assert not any("+" in name for name in found)

import pytest

from weft.compose.step import training_step
from weft.graph.program import Program
from weft.graph.record import Recorder
from weft.graph.render import render_call, render_lane, render_program, render_shape
from weft.parallel.layout import Dispatch, Layout
from weft.testing import models


def program(name: str, dispatch: Dispatch) -> Program:
    plan = models.plan(models.mixtral_like(), Layout(sp=2, ep=2, dispatch=dispatch))
    return training_step(plan).templates[name].program


@pytest.mark.parametrize("dispatch", Dispatch)
@pytest.mark.parametrize("name", ["moe.forward", "moe.backward"])
def test_a_layer_reads_as_its_golden_text(name, dispatch, golden):
    golden(f"{name}.{dispatch}", render_program(program(name, dispatch)))


def test_the_head_reads_as_its_golden_text(golden):
    golden("head", render_program(program("head", Dispatch.ALL_TO_ALL)))


def test_a_task_takes_a_line():
    found = program("moe.forward", Dispatch.ALL_TO_ALL)
    text = render_program(found)
    for task in found.tasks:
        assert sum(render_call(task) in line for line in text.splitlines()) == 1


def test_long_arguments_hang_under_the_first():
    lines = render_program(program("update", Dispatch.ALL_TO_ALL)).splitlines()
    at = next(i for i, line in enumerate(lines) if " adamw(" in line)
    assert lines[at + 1].index("s.mean") == lines[at].index("(") + 1


def test_a_collective_says_its_group_and_what_it_carries():
    found = program("moe.forward", Dispatch.ALL_TO_ALL)
    assert {"comm sp: qkv", "comm ep: rows", "host", "compute"} <= {
        render_lane(task) for task in found.tasks
    }


def test_the_compute_dtype_goes_without_saying():
    o = Recorder("p")
    assert render_shape(o.input("x", "T D")) == "[T D]"
    assert render_shape(o.input("load", "E", "i64")) == "[E]i64"
    assert render_shape(o.input("splits", "", "host")) == "host"


def test_a_program_without_tasks_is_its_inputs():
    o = Recorder("nothing")
    assert render_program(o.finish(o.input("x", "T D"))).startswith(
        "nothing: 0 tasks\n\n  in   x [T D]"
    )

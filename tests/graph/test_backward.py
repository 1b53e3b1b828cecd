import pytest

from weft.errors import ProgramError
from weft.graph.backward import Differentiated, differentiate
from weft.graph.program import Program, verify
from weft.graph.record import Recorder


def bodies(program: Program) -> list[str]:
    return [task.body for task in program.tasks]


def projected_twice() -> Differentiated:
    o = Recorder("p.forward")
    x, w = o.input("x", "T A"), o.input("w.out", "D A")
    (y,) = o.call("project", x, w)
    (z,) = o.call("project", y, w)
    return differentiate(o.finish(z))


def read_three_times() -> Differentiated:
    o = Recorder("p.forward")
    x = o.input("x", "T D")
    norms = [o.input(f"w.{i}", "D") for i in range(3)]
    a, b, c = (o.call("rms_norm", x, w, eps=1e-5)[0] for w in norms)
    (s,) = o.call("add", a, b)
    (t,) = o.call("add", s, c)
    return differentiate(o.finish(t))


def test_the_backward_is_named_after_its_forward():
    assert projected_twice().backward.name == "p.backward"


def test_a_weight_used_twice_makes_a_chain():
    backward = projected_twice().backward
    first, second = (task for task in backward.tasks if task.phase == "wgrad")
    assert first.inputs[0] == "acc.w.out"
    assert second.inputs[0] == first.outputs[0]
    assert backward.outputs[-1] == second.outputs[0]


def test_the_last_use_of_a_weight_accumulates_first():
    backward = projected_twice().backward
    assert "d.z" not in backward.values, "the gradient of the output has the output's name"
    first, _ = (task for task in backward.tasks if task.phase == "wgrad")
    assert first.inputs[1] == f"d.{projected_twice().forward.outputs[0]}"


def test_fan_in_adds_in_the_order_of_the_walk():
    backward = read_three_times().backward
    made = {name: task for task in backward.tasks for name in task.outputs}
    *_, before, last = (task for task in backward.tasks if task.body == "add")
    norms = [task.outputs[0] for task in backward.tasks if task.body == "rms_norm.dgrad"]
    assert before.inputs == (norms[0], norms[1])
    assert last.inputs == (before.outputs[0], norms[2])
    assert made[norms[0]].inputs[2] == "w.2", "the walk starts at the end of the forward"


def test_a_gradient_that_passes_is_not_copied():
    o = Recorder("p.forward")
    x, y = o.input("x", "T D"), o.input("y", "T D")
    (z,) = o.call("add", x, y)
    backward = differentiate(o.finish(z)).backward
    assert backward.tasks == ()
    assert backward.outputs == ("d.z", "d.z")


def test_the_forward_keeps_what_the_backward_reads_and_nothing_else():
    derived = projected_twice()
    (y, _) = (task.outputs[0] for task in derived.forward.tasks)
    assert derived.forward.kept == (y,)
    assert "x" in derived.backward.inputs, "an input of the forward need not be kept"


def test_a_collective_goes_back_by_its_adjoint_in_reverse():
    o = Recorder("p.forward")
    x, splits = o.input("x", "O D"), o.input("splits", "", "host")
    (y,) = o.call("all_to_all_rows", x, splits, axis="ep", label="rows", reverse=False)
    (task,) = differentiate(o.finish(y)).backward.tasks
    assert task.body == "all_to_all_rows"
    assert task.attributes["reverse"] is True
    assert task.inputs == ("d.out", "splits")


def test_an_all_gather_goes_back_by_a_reduce_scatter():
    o = Recorder("p.forward")
    (y,) = o.call("all_gather", o.input("x", "T D"), axis="ep", label="tokens")
    (task,) = differentiate(o.finish(y)).backward.tasks
    assert task.body == "reduce_scatter"


def test_a_loss_needs_no_gradient_to_start_from():
    o = Recorder("p.forward")
    logits, load = o.input("logits", "T E", "acc"), o.input("load", "B E", "i64")
    past, losses = o.input("s.past", "E", "acc"), o.input("s.losses", "2", "acc")
    (total,) = o.call("router_losses", logits, load, past, losses)
    backward = differentiate(o.finish(total)).backward
    assert bodies(backward) == ["router_losses.dgrad"]
    assert backward.outputs == ("d.logits",)


def test_a_fused_loss_makes_its_gradients_in_the_forward():
    o = Recorder("head.forward")
    h, w = o.input("h", "T D"), o.input("w.head", "V D")
    targets, divisor = o.input("targets", "T", "i64"), o.input("divisor", "", "host")
    (total,) = o.call("cross_entropy", h, w, targets, divisor, o.input("s.loss", "1", "acc"))
    derived = differentiate(o.finish(total))
    (task,) = derived.forward.tasks
    assert task.body == "cross_entropy.fused"
    assert task.inputs[-1] == "acc.w.head"
    assert task.outputs == ("total", "d.h", "acc.w.head'")
    assert set(derived.forward.outputs) == {"total", "d.h", "acc.w.head'"}
    assert derived.backward.tasks == ()


def test_half_a_gradient_names_the_task_and_both_values():
    o = Recorder("p.forward")
    x, r, w = o.input("x", "T D"), o.input("r", "T D"), o.input("w.norm", "D")
    _, y, _ = o.call("add_rms_norm", x, r, w)
    with pytest.raises(ProgramError, match=r"add_rms_norm: only \['y'\] of \['s', 'y'\]"):
        differentiate(o.finish(y))


def test_what_no_output_depends_on_gets_no_gradient():
    o = Recorder("p.forward")
    x = o.input("x", "T D")
    (used,) = o.call("add", x, x)
    o.call("rms_norm", x, o.input("w.norm", "D"))
    backward = differentiate(o.finish(used)).backward
    assert "rms_norm.dgrad" not in bodies(backward)


def test_derived_programs_verify():
    for derived in (projected_twice(), read_three_times()):
        verify(derived.forward)
        verify(derived.backward)

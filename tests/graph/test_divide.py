import pytest

from weft.errors import ProgramError
from weft.graph.divide import divide
from weft.graph.program import Program
from weft.graph.record import Recorder

NAMES = ("now", "then")


def exchange() -> Program:
    o = Recorder("exchange")
    x, y = o.input("x", "T D"), o.input("y", "T D")
    (a,) = o.call("add", x, y)
    (b,) = o.call("all_to_all", a, axis="sp", label="first")
    (c,) = o.call("add", b, x)
    (d,) = o.call("add", c, y)
    return o.finish(a, d)


PROGRAM = exchange()
ADD, EXCHANGE, ADD_2, ADD_3 = (task.name for task in PROGRAM.tasks)


def test_a_collective_that_only_the_second_part_reads_crosses_in_flight():
    now, then = divide(PROGRAM, {ADD_2, ADD_3}, NAMES)
    (crossing,) = PROGRAM.tasks[1].outputs
    assert now.opens == then.joins == (crossing,)
    assert now.outputs == ("z", crossing)
    assert then.inputs == ("x", "y", crossing)


def test_what_both_parts_read_crosses_as_it_is():
    now, then = divide(PROGRAM, {ADD_3}, NAMES)
    assert now.opens == then.joins == ()
    assert now.outputs[-1] == then.inputs[-1] == PROGRAM.tasks[2].outputs[0]


def test_every_task_and_every_output_is_in_one_part():
    parts = divide(PROGRAM, {EXCHANGE, ADD_2, ADD_3}, NAMES)
    assert [task for part in parts for task in part.tasks] == list(PROGRAM.tasks)
    assert set(PROGRAM.outputs) == {*parts[0].outputs, *parts[1].outputs}


def test_a_task_cannot_stay_before_what_it_reads():
    with pytest.raises(ProgramError, match=r"now reads \['z_2'\], which then makes"):
        divide(PROGRAM, {ADD_2}, NAMES)


def test_what_arrives_in_flight_is_joined_by_the_part_that_reads_it():
    _, then = divide(PROGRAM, {ADD_2, ADD_3}, NAMES)
    first, second = divide(then, {ADD_3}, NAMES)
    assert (first.joins, second.joins) == (then.joins, ())


def test_what_both_parts_read_is_joined_by_the_first_and_passed_on():
    o = Recorder("twice")
    x = o.input("x", "T D")
    (a,) = o.call("add", x, x)
    (b,) = o.call("add", a, x)
    program = o.finish(b, joins=(x,))
    first, second = divide(program, {program.tasks[1].name}, NAMES)
    assert (first.joins, second.joins) == (("x",), ())
    assert "x" in first.outputs
    assert "x" in second.inputs

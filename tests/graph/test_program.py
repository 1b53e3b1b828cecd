from dataclasses import replace

import pytest

from weft.errors import ProgramError
from weft.graph.program import Program, join, verify
from weft.graph.record import Recorder


def two_adds(name: str = "sum") -> Program:
    o = Recorder(name)
    x, y = o.input("x", "T D"), o.input("y", "T D")
    (a,) = o.call("add", x, y)
    (b,) = o.call("add", a, x)
    return o.finish(b)


def test_a_value_read_before_it_is_made_names_task_and_value():
    program = two_adds()
    with pytest.raises(ProgramError, match=r"task add_2 reads \['z'\] before it is made"):
        verify(replace(program, tasks=program.tasks[::-1]))


def test_a_value_made_twice_names_task_and_value():
    program = two_adds()
    first, second = program.tasks
    again = replace(second, outputs=first.outputs)
    with pytest.raises(ProgramError, match=r"task add_2 makes \['z'\] a second time"):
        verify(replace(program, tasks=(first, again)))


def test_an_output_that_no_task_makes_is_named():
    with pytest.raises(ProgramError, match=r"promises \['nothing'\]"):
        verify(replace(two_adds(), outputs=("nothing",)))


def test_a_kept_value_that_no_task_makes_is_named():
    with pytest.raises(ProgramError, match=r"promises \['nothing'\]"):
        verify(replace(two_adds(), kept=("nothing",)))


def test_consumers_are_listed_once_and_in_order():
    readers = two_adds().consumers()
    assert [task.name for task in readers["x"]] == ["add", "add_2"]
    assert "z_2" not in readers


def test_a_join_reads_what_the_first_makes():
    o = Recorder("double")
    z, w = o.input("z_2", "T D"), o.input("w.embed", "V D")
    (logits,) = o.call("router_logits", z, w)
    both = join("both", two_adds(), o.finish(logits))
    assert both.inputs == ("x", "y", "w.embed")
    assert both.outputs == ("z_2", "logits")


def test_a_join_of_programs_that_share_a_task_name_is_refused():
    with pytest.raises(ProgramError, match="both: two tasks are called add"):
        join("both", two_adds(), two_adds())


def test_two_tasks_of_one_name_are_refused():
    program = two_adds()
    first, second = program.tasks
    with pytest.raises(ProgramError, match="two tasks are called add"):
        verify(replace(program, tasks=(first, replace(second, name="add"))))

"""A schedule that is saved is read back as it was; two that differ say where."""

import pytest

from weft.errors import ProgramError
from weft.graph.program import Program
from weft.graph.record import Recorder
from weft.schedule.check import check
from weft.schedule.layer import serial, shuffled
from weft.schedule.render import render_actions
from weft.schedule.saved import compare, restored, sections
from weft.schedule.sequence import in_sequence


def program(name: str = "p.forward") -> Program:
    o = Recorder(name)
    x = o.input("x", "N P")
    (a,) = o.call("all_to_all", x, axis="sp", label="a")
    (b,) = o.call("all_to_all", x, axis="sp", label="b")
    (c,) = o.call("add", x, x)
    return o.finish(o.call("add", a, b)[0], c)


def text(*ordered) -> str:
    return "\n\n".join(map(render_actions, ordered))


def test_segments_are_found_by_their_titles():
    saved = text(serial(program()), serial(program("q.backward+q.forward")))
    assert list(sections(saved)) == ["p.forward", "q.backward+q.forward"]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_saved_is_restored(seed):
    ordered = shuffled(program(), seed)
    saved = sections(text(serial(program("other")), ordered))["p.forward"]
    assert restored(saved, program()).actions == ordered.actions


def test_collectives_are_issued_as_the_text_has_them():
    tasks = program().tasks
    swapped = in_sequence(program(), (tasks[1], tasks[0], *tasks[2:]))
    found = check(restored(text(swapped), program()))
    assert found == swapped


def test_a_task_that_the_text_leaves_out_is_missed():
    lines = [line for line in text(serial(program())).splitlines() if "add_2" not in line]
    with pytest.raises(ProgramError, match="add_2"):
        check(restored("\n".join(lines), program()))


def test_a_task_that_the_program_does_not_have_is_named():
    saved = text(serial(program())).replace("add_2", "swiglu")
    with pytest.raises(ProgramError, match="found task 'swiglu'"):
        restored(saved, program())


def test_equal_schedules_have_no_difference():
    saved = text(serial(program()))
    assert list(compare(saved, saved)) == []


def test_a_moved_wait_is_shown_and_numbers_are_not():
    late = in_sequence(program(), program().tasks)
    lines = list(compare(text(serial(program())), text(late)))
    assert lines[0] == "p.forward:"
    moved = [line for line in lines if line.startswith(("  +", "  -"))]
    assert moved
    assert all("wait" in line or "post" in line or "run" in line for line in moved)


def test_a_segment_on_one_side_is_named():
    both = text(serial(program()), serial(program("q.forward")))
    assert list(compare(both, text(serial(program())))) == ["q.forward: only in the first"]


def test_text_without_a_title_is_refused():
    with pytest.raises(ProgramError, match="expected a title"):
        sections("   0  run  add  x, x -> z")


def test_a_segment_twice_is_refused():
    saved = text(serial(program()), serial(program()))
    with pytest.raises(ProgramError, match="p.forward twice"):
        sections(saved)

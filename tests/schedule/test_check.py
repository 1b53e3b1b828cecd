"""Every rule is broken once by a planted fault, and named."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from weft.errors import ProgramError
from weft.graph.program import Program
from weft.graph.record import Recorder
from weft.schedule.action import Action, Free, Join, Ordered, Post, Run, Wait
from weft.schedule.check import check
from weft.schedule.layer import serial, shuffled
from weft.schedule.render import parse, render_actions

Fault = Callable[[list[Action]], None]


def two_exchanges() -> Program:
    o = Recorder("exchanges")
    x, y = o.input("x", "T D"), o.input("y", "T D")
    (a,) = o.call("add", x, y)
    (b,) = o.call("all_to_all", a, axis="sp", label="first")
    (c,) = o.call("all_to_all", y, axis="sp", label="second")
    (d,) = o.call("add", b, c)
    (e,) = o.call("add", d, c)
    return o.finish(e, kept=(d.name,))


PROGRAM = two_exchanges()
ADD, FIRST, SECOND, ADD_2, ADD_3 = PROGRAM.tasks
A, B, C, D, E = (task.outputs[0] for task in PROGRAM.tasks)
LEGAL = serial(PROGRAM)


def refused(fault: Fault) -> str:
    actions = list(LEGAL.actions)
    fault(actions)
    with pytest.raises(ProgramError) as error:
        check(Ordered(program=PROGRAM, actions=tuple(actions)))
    return str(error.value)


def at(action: Action) -> int:
    return LEGAL.actions.index(action)


def test_a_legal_order_passes_and_comes_back():
    assert check(LEGAL) is LEGAL


def test_the_position_of_the_broken_action_is_named():
    message = refused(lambda actions: actions.insert(0, Run(ADD_2)))
    assert message.startswith("exchanges, action 0: ")


def test_a_collective_cannot_be_run():
    def fault(actions):
        actions[at(Post(FIRST)) : at(Wait(FIRST)) + 1] = [Run(FIRST)]

    assert "all_to_all is a collective: post it and wait for it" in refused(fault)


def test_a_task_cannot_read_what_is_not_there():
    def fault(actions):
        actions.insert(0, actions.pop(at(Run(ADD_2))))

    assert f"add_2 reads ['{B}', '{C}'], not there yet" in refused(fault)


def test_the_result_of_a_collective_is_not_there_before_its_wait():
    def fault(actions):
        actions.insert(at(Run(ADD_3)), actions.pop(at(Wait(SECOND))))
        actions.remove(Free("y"))

    assert f"add_2 reads ['{C}'], not there yet" in refused(fault)


def test_a_task_cannot_start_twice():
    message = refused(lambda actions: actions.insert(at(Run(ADD)) + 1, Run(ADD)))
    assert "add starts twice" in message


def test_a_group_issues_its_collectives_in_program_order():
    def fault(actions):
        first, second = at(Post(FIRST)), at(Post(SECOND))
        actions[first : second + 1] = [Post(SECOND), Post(FIRST), Wait(FIRST)]

    assert "group sp must issue all_to_all before all_to_all_2" in refused(fault)


def test_what_is_not_in_flight_cannot_be_waited_for():
    def fault(actions):
        actions.insert(0, Wait(FIRST))

    assert "all_to_all is waited for but not in flight" in refused(fault)


def test_a_collective_is_waited_for_once():
    def fault(actions):
        actions.insert(at(Wait(FIRST)) + 1, Wait(FIRST))

    assert "all_to_all is waited for but not in flight" in refused(fault)


def test_what_is_not_there_cannot_be_freed():
    assert f"{E} is freed but not there" in refused(lambda actions: actions.insert(0, Free(E)))


def test_a_value_is_freed_once():
    def fault(actions):
        actions.insert(at(Free(B)) + 1, Free(B))

    assert f"{B} is freed but not there" in refused(fault)


@pytest.mark.parametrize("value", [E, D])
def test_an_output_or_a_kept_value_cannot_be_freed(value):
    message = refused(lambda actions: actions.append(Free(value)))
    assert f"{value} is an output and may not be freed" in message


def test_a_value_cannot_be_freed_while_a_collective_in_flight_reads_it():
    def fault(actions):
        actions.remove(Free(A))
        actions.insert(at(Post(FIRST)) + 1, Free(A))

    assert f"{A} is freed while all_to_all is in flight" in refused(fault)


def test_a_freed_value_cannot_be_read():
    def fault(actions):
        actions.remove(Free(C))
        actions.insert(at(Run(ADD_2)) + 1, Free(C))

    assert f"add_3 reads ['{C}'] after it was freed" in refused(fault)


def test_a_forgotten_task_is_named():
    message = refused(lambda actions: actions.remove(Run(ADD_3)))
    assert "['add_3'] never run" in message


def test_a_forgotten_wait_is_named():
    o = Recorder("one")
    (y,) = o.call("all_to_all", o.input("x", "N P"), axis="sp", label="only")
    program = o.finish(y)
    with pytest.raises(ProgramError, match=r"one: \['all_to_all'\] are never waited for"):
        check(Ordered(program=program, actions=(Post(program.tasks[0]),)))


def test_a_collective_cannot_be_posted_twice():
    def fault(actions):
        actions.insert(at(Wait(SECOND)) + 1, Post(SECOND))

    assert "all_to_all_2 starts twice" in refused(fault)


def test_a_compute_task_cannot_be_posted():
    message = refused(lambda actions: actions.insert(0, Post(ADD)))
    assert "add is no collective: run it" in message


def test_a_task_of_another_program_is_refused():
    foreign = replace(ADD, outputs=(A,), inputs=("x", "x"))

    def fault(actions):
        actions[at(Run(ADD))] = Run(foreign)

    assert "add is not a task of this program" in refused(fault)


# ---- what crosses the edge of a segment in flight ----


def crossing() -> Program:
    """Joins x, and leaves what it sends in flight."""
    o = Recorder("crossing")
    x, y = o.input("x", "T D"), o.input("y", "T D")
    (a,) = o.call("add", x, y)
    (b,) = o.call("all_to_all", a, axis="sp", label="sent")
    (c,) = o.call("add", y, y)
    return o.finish(b, c, opens=(b,), joins=(x,))


CROSSING = crossing()
ADD_XY, SENT, ADD_YY = CROSSING.tasks
UNTIL_SENT = (Join("x"), Run(ADD_XY), Post(SENT))


def refused_crossing(*actions: Action) -> str:
    with pytest.raises(ProgramError) as error:
        check(Ordered(program=CROSSING, actions=actions))
    return str(error.value)


def test_an_open_collective_is_posted_and_what_it_reads_outlives_the_segment():
    actions = check(serial(CROSSING)).actions
    assert actions[:2] == UNTIL_SENT[:2]
    assert Wait(SENT) not in actions
    assert Free(SENT.inputs[0]) not in actions


def test_what_arrives_in_flight_is_not_read_before_it_is_joined():
    assert "add reads ['x'], not there yet" in refused_crossing(Run(ADD_XY))


def test_what_arrives_in_flight_is_joined_once():
    assert "x is joined but not on its way here" in refused_crossing(Join("x"), Join("x"))


def test_what_arrives_in_flight_is_joined_in_the_end():
    o = Recorder("idle")
    x, y = o.input("x", "T D"), o.input("y", "T D")
    program = o.finish(*o.call("add", y, y), joins=(x,))
    with pytest.raises(ProgramError, match=r"\['x'\] arrive in flight and are never joined"):
        check(Ordered(program=program, actions=(Run(program.tasks[0]),)))


def test_an_open_collective_is_not_waited_for_here():
    message = refused_crossing(*UNTIL_SENT, Wait(SENT))
    assert "all_to_all is left open: a later segment waits for it" in message


def test_what_an_open_collective_reads_is_not_freed_here():
    message = refused_crossing(*UNTIL_SENT, Free(SENT.inputs[0]))
    assert "is freed while all_to_all is in flight" in message


def test_the_text_of_an_order_says_what_crosses_and_parses_back():
    for ordered in (serial(CROSSING), shuffled(CROSSING, 1)):
        text = render_actions(ordered)
        assert "join  x           from an earlier segment" in text
        assert "sp: sent  z -> y_2  (left open)" in text
        assert parse(text, CROSSING) == ordered

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest

from weft.compose.plan import Plan, sizes
from weft.compose.price import Nominal, price
from weft.compose.step import training_step
from weft.errors import ProgramError
from weft.graph.program import Program, Task
from weft.graph.record import Recorder
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.action import Free, Ordered
from weft.schedule.check import check
from weft.schedule.layer import overlapped, serial, shuffled
from weft.schedule.render import (
    Scale,
    parse,
    place,
    render_actions,
    render_seconds,
    render_timeline,
)
from weft.testing import models

NAMES = ("moe.forward", "moe.backward")
EVERY = (
    pytest.mark.parametrize("dispatch", Dispatch),
    pytest.mark.parametrize("order", ["serial", "overlapped"]),
    pytest.mark.parametrize("name", NAMES),
)


def every(test):
    for mark in EVERY:
        test = mark(test)
    return test


def plan(dispatch: Dispatch, order: str) -> Plan:
    """A layer as wide as Mixtral 8x7B's on two ranks that share sequences and experts."""
    layout = Layout(sp=2, ep=2, dispatch=dispatch)
    small = models.plan(models.large_mixtral(), layout, order=order)
    return replace(small, sequence=8192, micro_batch=1)


def scheduled(name: str, dispatch: Dispatch, order: str) -> tuple[Ordered, str]:
    """A segment's order, and its timeline at nominal prices."""
    made = plan(dispatch, order)
    ordered = training_step(made).templates[name]
    n, rates = sizes(made), Nominal()
    return ordered, render_timeline(ordered, lambda task: price(task, ordered.program, n, rates))


@every
def test_a_schedule_reads_as_its_golden_text(name, order, dispatch, golden):
    ordered, timeline = scheduled(name, dispatch, order)
    golden(f"{name}.{order}.{dispatch}", f"{timeline}\n\n{render_actions(ordered)}")


@every
def test_a_timeline_is_at_most_100_columns_wide(name, order, dispatch):
    _, timeline = scheduled(name, dispatch, order)
    assert max(map(len, timeline.splitlines())) <= 100


@every
def test_actions_parse_back(name, order, dispatch):
    ordered, _ = scheduled(name, dispatch, order)
    assert parse(render_actions(ordered), ordered.program) == ordered


def at_price(task: Task, seconds: float) -> float:
    return seconds


unit = partial(at_price, seconds=1.0)


def chain() -> Program:
    o = Recorder("chain")
    x, y = o.input("x", "T D"), o.input("y", "T D")
    (a,) = o.call("add", x, y)
    (b,) = o.call("all_to_all", a, axis="sp", label="b")
    (c,) = o.call("add", x, y)
    return o.finish(o.call("add", b, c)[0])


@pytest.mark.parametrize("seed", range(5))
def test_any_order_parses_back(seed):
    ordered = shuffled(chain(), seed)
    assert parse(render_actions(ordered), ordered.program) == ordered


def test_numbers_are_those_of_the_checker():
    ordered = serial(chain())
    for line in render_actions(ordered).splitlines()[2:]:
        number, verb, name, *_ = line.replace(",", " ").split()
        action = ordered.actions[int(number)]
        assert verb == type(action).__name__.lower()
        assert name == (action.value if isinstance(action, Free) else action.task.name)


def test_a_line_moved_by_hand_is_read_where_it_stands_and_checked():
    ordered = serial(chain())
    title, blank, *lines = render_actions(ordered).splitlines()
    wait = next(i for i, line in enumerate(lines) if " wait " in line)
    add = next(i for i, line in enumerate(lines) if " add_2 " in line)
    lines[wait], lines[add] = lines[add], lines[wait]
    moved = parse("\n".join((title, blank, *lines)), ordered.program)
    with pytest.raises(ProgramError, match="action"):
        check(moved)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  3  run  conv2d  x -> y", "found task 'conv2d'"),
        ("  3  skip  add", "found '3  skip  add', expected a number"),
        ("  3  free", "expected a number"),
        ("run", "expected a number"),
    ],
)
def test_a_line_that_is_no_action_is_quoted(line, message):
    with pytest.raises(ProgramError, match=message):
        parse(f"chain: 1 actions\n\n{line}", chain())


def test_actions_of_another_program_are_refused():
    with pytest.raises(ProgramError, match="expected the actions of chain"):
        parse("other: 0 actions", chain())


def test_a_long_run_of_frees_takes_several_lines():
    o = Recorder("many")
    inputs = [o.input(f"a_rather_long_name_{i}", "T D") for i in range(12)]
    program = o.finish(o.call("add", *inputs[:2])[0])
    ordered = Ordered(program=program, actions=tuple(Free(v.name) for v in inputs))
    text = render_actions(ordered)
    assert max(map(len, text.splitlines())) <= 100
    assert parse(text, program) == ordered


def test_serial_communication_is_all_exposed():
    line = place(serial(chain()), unit)
    assert line.exposed == ((1.0, 2.0),)
    assert line.seconds == 4.0


def test_overlapped_communication_is_hidden_by_what_runs_under_it():
    line = place(overlapped(chain(), unit), unit)
    assert line.exposed == ()
    assert line.seconds == 3.0


def test_collectives_of_a_group_follow_one_another():
    o = Recorder("two")
    x = o.input("x", "N P")
    made = [o.call("all_to_all", x, axis=axis, label="x")[0] for axis in ("sp", "sp", "ep")]
    line = place(overlapped(o.finish(*made), unit), unit)
    assert {(bar.task.name, bar.lane, bar.start) for bar in line.bars} == {
        ("all_to_all", "comm sp", 0.0),
        ("all_to_all_2", "comm sp", 1.0),
        ("all_to_all_3", "comm ep", 0.0),
    }
    assert line.seconds == 2.0


def test_a_segment_without_communication_says_so():
    o = Recorder("quiet")
    x = o.input("x", "T D")
    text = render_timeline(
        serial(o.finish(o.call("add", x, x)[0])), partial(at_price, seconds=2e-3)
    )
    assert text.splitlines()[0] == "quiet: 2 ms; communication 0 us, of which 0 us exposed"
    assert "exposed  " not in text


def test_a_segment_that_takes_no_time_can_be_drawn():
    text = render_timeline(serial(chain()), partial(at_price, seconds=0.0))
    assert "too short to draw" in text


def test_neighbouring_bars_never_overlap():
    scale = Scale(seconds=1.0, columns=7)
    edges = [0.0, 0.1, 0.15, 0.6, 0.61, 1.0]
    row = scale.draw((a, b, "#", "=") for a, b in pairwise(edges))
    assert len(row) == 7
    assert " " not in row


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.56e-6, "4.56 us"), (3e-9, "0.003 us")],
)
def test_times_have_three_digits(seconds, text):
    assert render_seconds(seconds) == text

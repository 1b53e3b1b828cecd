from dataclasses import replace

import pytest

from weft.compose.plan import Plan, sizes
from weft.compose.price import Nominal, price
from weft.compose.step import training_step
from weft.graph.program import Program, Task
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.action import Free, Ordered, Post, Run, Wait, is_collective
from weft.schedule.check import check
from weft.schedule.layer import overlapped, serial, shuffled
from weft.testing import models

NAMES = ("moe.forward", "moe.backward", "update")


def plan(dispatch: Dispatch) -> Plan:
    return models.plan(models.mixtral_like(), Layout(sp=2, ep=2, dispatch=dispatch))


PROGRAMS = {
    f"{name} {dispatch}": training_step(plan(dispatch)).templates[name].program
    for dispatch in Dispatch
    for name in NAMES
}
EVERY = pytest.mark.parametrize("program", PROGRAMS.values(), ids=list(PROGRAMS))


def starts(ordered: Ordered) -> list[Task]:
    return [a.task for a in ordered.actions if isinstance(a, Run | Post)]


def between(ordered: Ordered, task: Task) -> list[Task]:
    """What runs while a collective is in flight."""
    actions = ordered.actions
    flight = actions[actions.index(Post(task)) : actions.index(Wait(task))]
    return [a.task for a in flight if isinstance(a, Run)]


def collective(program: Program, label: str) -> Task:
    return next(t for t in program.tasks if t.attributes.get("label") == label)


def unit(task: Task) -> float:
    return 1.0


@EVERY
def test_serial_is_program_order(program):
    ordered = check(serial(program))
    assert starts(ordered) == list(program.tasks)


@EVERY
def test_serial_waits_at_once(program):
    ordered = serial(program)
    assert all(between(ordered, task) == [] for task in program.tasks if is_collective(task))


@EVERY
def test_overlapped_is_legal_and_runs_everything(program):
    ordered = check(overlapped(program, unit))
    assert sorted(t.name for t in starts(ordered)) == sorted(t.name for t in program.tasks)


@EVERY
def test_overlapped_is_the_same_order_every_time(program):
    assert overlapped(program, unit) == overlapped(program, unit)


@EVERY
def test_every_value_but_outputs_and_statics_is_freed(program):
    freed = {a.value for a in overlapped(program, unit).actions if isinstance(a, Free)}
    read = {v for t in program.tasks for v in (*t.inputs, *t.outputs)}
    static = {v for v in read if v.startswith(("w.", "acc.", "s."))}
    assert freed == read - {*program.outputs, *program.kept} - static


@EVERY
def test_a_collective_is_posted_as_soon_as_it_can_be(program):
    ordered = overlapped(program, unit)
    actions = [a for a in ordered.actions if not isinstance(a, Free)]
    made = program.producer()
    for at, action in enumerate(actions):
        if not isinstance(action, Post):
            continue
        before = actions[at - 1] if at else None
        group = [t for t in program.tasks if is_collective(t) and t.group == action.task.group]
        last = group[group.index(action.task) - 1] if group.index(action.task) else None
        enabling = {made[v].name for v in action.task.inputs if v in made}
        assert (
            before is None
            or isinstance(before, Post)
            or before.task.name in enabling
            or (last is not None and before.task is last)
        ), f"{action.task.name} waits behind {before}"


def test_rows_travel_while_their_weights_are_posted():
    program = PROGRAMS["moe.forward all_to_all"]
    ordered = overlapped(program, unit)
    actions = ordered.actions
    rows, weights = collective(program, "rows"), collective(program, "weights")
    assert actions.index(Post(weights)) < actions.index(Wait(rows))


@pytest.mark.parametrize(("dispatch", "label"), [("all_to_all", "rows"), ("all_gather", "tokens")])
def test_weight_gradients_hide_what_the_backward_sends(dispatch, label):
    program = PROGRAMS[f"moe.backward {dispatch}"]
    large = replace(
        plan(Dispatch(dispatch)), shape=models.large_mixtral().shape, sequence=8192, micro_batch=1
    )
    n, rates = sizes(large), Nominal()
    ordered = overlapped(program, lambda task: price(task, program, n, rates))
    for what in (label, "attention", "qkv"):
        hidden = between(ordered, collective(program, what))
        assert any(task.phase == "wgrad" for task in hidden), what


def test_what_leads_to_a_collective_goes_before_a_weight_gradient():
    program = PROGRAMS["moe.backward all_to_all"]
    order = [task.body for task in starts(overlapped(program, unit))]
    assert order.index("swiglu.dgrad") < order.index("expert_down.wgrad")


def test_a_cheap_collective_is_given_no_more_cover_than_it_needs():
    program = PROGRAMS["moe.backward all_to_all"]
    price = {True: 0.5, False: 1.0}
    ordered = overlapped(program, lambda task: price[is_collective(task)])
    hidden = between(ordered, collective(program, "qkv"))
    assert len(hidden) == 1


def test_the_outputs_of_experts_wait_for_nothing_but_bookkeeping():
    program = PROGRAMS["moe.forward all_to_all"]
    hidden = between(overlapped(program, unit), collective(program, "outputs"))
    assert {task.body for task in hidden} <= {"add_load", "router_losses"}, "off the critical path"


@EVERY
@pytest.mark.parametrize("seed", range(10))
def test_shuffled_orders_are_legal(program, seed):
    ordered = check(shuffled(program, seed))
    assert len(starts(ordered)) == len(program.tasks)


@EVERY
def test_a_seed_is_an_order(program):
    orders = [tuple(starts(shuffled(program, seed))) for seed in range(10)]
    assert shuffled(program, 3) == shuffled(program, 3)
    names = {tuple(t.name for t in order) for order in orders}
    assert len(names) > 5

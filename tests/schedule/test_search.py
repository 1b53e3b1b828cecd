"""A searched order is legal, the same every time, and no worse than what it started from."""

from dataclasses import replace
from itertools import permutations

import pytest

from weft.compose.order import named_order
from weft.compose.plan import Plan, sizes
from weft.compose.price import BYTES, nominal_pricing, value_bytes
from weft.compose.step import training_step
from weft.errors import ProgramError
from weft.graph.program import Program, Task
from weft.graph.record import Recorder
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.action import Free, Ordered, Post, Run, Wait
from weft.schedule.check import check
from weft.schedule.layer import overlapped, serial, shuffled
from weft.schedule.paper import paper
from weft.schedule.render import place
from weft.schedule.search import peak_bytes, search
from weft.schedule.sequence import in_sequence
from weft.testing import models

NAMES = ("moe.forward", "moe.backward")
FEW = 300  # timings: enough to find what a test asks for


def plan(dispatch: Dispatch) -> Plan:
    layout = Layout(sp=8, ep=8, dispatch=dispatch)
    made = replace(models.plan(models.large_mixtral(), layout), remat="selective")
    return replace(made, sequence=8192, micro_batch=1)


PLANS = {dispatch: plan(dispatch) for dispatch in Dispatch}
STEPS = {dispatch: training_step(made) for dispatch, made in PLANS.items()}
EVERY = (pytest.mark.parametrize("dispatch", Dispatch), pytest.mark.parametrize("name", NAMES))


def every(test):
    for mark in EVERY:
        test = mark(test)
    return test


class Segment:
    def __init__(self, name: str, dispatch: Dispatch) -> None:
        self.program: Program = STEPS[dispatch].templates[name].program
        self.n = sizes(PLANS[dispatch])
        starting = [serial(self.program), overlapped(self.program, self.price)]
        self.starting = [*starting, found] if (found := paper(self.program)) else starting

    def price(self, task: Task) -> float:
        return nominal_pricing()(task, self.program, self.n)

    def size(self, value: str) -> int:
        return value_bytes(value, self.program, self.n, BYTES)

    def seconds(self, ordered: Ordered) -> float:
        return place(ordered, self.price).seconds

    def searched(self, **options) -> Ordered:
        options = {"timings": FEW, "starting": self.starting, **options}
        return search(self.program, self.price, self.size, **options)


@every
def test_a_searched_order_is_legal_and_runs_everything(name, dispatch):
    segment = Segment(name, dispatch)
    found = check(segment.searched())
    assert sorted(t.name for t in found.program.tasks) == sorted(
        t.name for t in segment.program.tasks
    )


@every
def test_it_is_no_longer_than_any_order_it_starts_from(name, dispatch):
    segment = Segment(name, dispatch)
    best = min(map(segment.seconds, segment.starting))
    assert segment.seconds(segment.searched()) <= best


@every
def test_it_needs_no_more_memory_than_the_dearest_of_them(name, dispatch):
    segment = Segment(name, dispatch)
    bound = max(peak_bytes(ordered, segment.size) for ordered in segment.starting)
    assert peak_bytes(segment.searched(), segment.size) <= bound


def test_with_little_memory_it_finds_another_order():
    segment = Segment("moe.backward", Dispatch.ALL_TO_ALL)
    tight = segment.searched(starting=segment.starting[:1])
    assert peak_bytes(tight, segment.size) <= peak_bytes(segment.starting[0], segment.size)
    assert segment.seconds(tight) > segment.seconds(segment.searched())


def test_a_seed_gives_one_order():
    segment = Segment("moe.backward", Dispatch.ALL_GATHER)
    assert segment.searched(seed=3) == segment.searched(seed=3)


def test_ranks_of_a_group_find_one_order():
    orders = []
    for rank in (0, 5):
        made = replace(PLANS[Dispatch.ALL_GATHER], rank=rank, order="auto")
        program = STEPS[Dispatch.ALL_GATHER].templates["moe.backward"].program
        orders.append([t.name for t in named_order(made)(program).program.tasks])
    assert orders[0] == orders[1]


def forked() -> Program:
    """Two transfers and two fillers: only one pairing hides both."""
    o = Recorder("forked")
    x, w = o.input("x", "T D"), o.input("w.norm", "D")
    (a,) = o.call("all_to_all", x, axis="sp", label="long")
    (b,) = o.call("all_to_all", x, axis="ep", label="short")
    (c,) = o.call("add", x, x)
    d, _ = o.call("rms_norm", x, w, eps=1e-5)
    (e,) = o.call("add", b, c)
    (f,) = o.call("all_to_all", e, axis="ep", label="last")
    return o.finish(a, d, f)


COSTS = {"all_to_all": 5.0, "all_to_all_2": 2.0, "all_to_all_3": 4.0, "add": 2.0, "rms_norm": 4.0}


def cost(task: Task) -> float:
    return COSTS.get(task.name, 1.0)


def test_it_finds_the_best_of_all_orders_of_a_small_program():
    program = forked()
    best = min(place(o, cost).seconds for o in every_order(program))
    found = search(program, cost, lambda _: 1, starting=[serial(program)])
    assert place(found, cost).seconds == best < place(serial(program), cost).seconds


def every_order(program: Program) -> list[Ordered]:
    found = []
    for tasks in permutations(program.tasks):
        try:
            found.append(in_sequence(program, tasks))
        except ProgramError:  # not legal
            continue
    return found


@pytest.mark.parametrize("seed", range(10))
def test_the_peak_is_that_of_the_actions(seed):
    """The bytes that the executor holds, walked action by action."""
    segment = Segment("moe.backward", Dispatch.ALL_GATHER)
    sequence = [t for t in shuffled(segment.program, seed).actions if isinstance(t, Run | Post)]
    ordered = in_sequence(segment.program, [action.task for action in sequence])
    static = ("w.", "acc.", "s.")
    alive = most = sum(segment.size(v) for v in segment.program.inputs if not v.startswith(static))
    for action in ordered.actions:
        match action:
            case Run(task) | Post(task):
                alive += sum(segment.size(v) for v in task.outputs if not v.startswith(static))
                most = max(most, alive)
            case Free(value):
                alive -= segment.size(value)
            case Wait():
                pass
    assert peak_bytes(ordered, segment.size) == most


def test_a_segment_without_communication_stays_as_it_is():
    o = Recorder("p")
    (y,) = o.call("add", o.input("x", "T D"), o.input("y", "T D"))
    program = o.finish(o.call("add", y, y)[0])
    found = search(program, cost, lambda _: 1, starting=[serial(program)])
    assert found.program.tasks == program.tasks

import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch

from weft.comm.mesh import Mesh
from weft.comm.transports.stacked import StackedWorld
from weft.compose.instance import Instance
from weft.compose.step import Step, training_step
from weft.errors import CommunicationError, DeadlockError
from weft.graph.program import Program
from weft.graph.record import Recorder
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.runtime.executor import BoundStep, bind, bind_template, run_together
from weft.runtime.lanes import HostLanes
from weft.runtime.stage import Rates, Stage
from weft.runtime.wire import collective_bodies
from weft.schedule.action import Action, Free, Ordered, Post, Wait, is_collective
from weft.schedule.layer import serial
from weft.testing import agreement, models


class Thing:
    """A value that can be watched while it lives."""

    def __init__(self, *_: object) -> None: ...


def chain(length: int) -> Program:
    o = Recorder("chain")
    value, w = o.input("x", "T D"), o.input("w.norm", "D")
    for _ in range(length):
        (value,) = o.call("add", value, w)
    return o.finish(value)


def step_of(program: Program, *, drops: tuple[str, ...] = ("x",)) -> Step:
    """A step of one instance."""
    whole = training_step(models.plan(models.mixtral_like()))
    instance = Instance(
        template=program.name,
        statics={n: n for n in program.inputs if n.startswith("w.")},
        reads={n: n for n in program.inputs if not n.startswith("w.")},
        writes={program.outputs[0]: "y"},
        drops=drops,
    )
    return replace(whole, templates={program.name: serial(program)}, instances=(instance,))


# ---- freeing -----------------------------------------------------------------------------------


def test_a_freed_value_dies_before_the_next_task_but_one():
    alive: list[int] = []
    made: list[weakref.ref] = []

    def add(x: Thing, w: Thing) -> Thing:
        alive.append(sum(ref() is not None for ref in made))
        thing = Thing()
        made.append(weakref.ref(thing))
        return thing

    bound = bind(
        step_of(chain(5)), bodies={"add": add}, statics={"w.norm": Thing()}, lanes=HostLanes()
    )
    environment = {"x": Thing()}
    bound.run(environment)
    assert alive == [0, 1, 1, 1, 1], "only the input of the task is alive while it runs"
    assert [ref() is not None for ref in made] == [False] * 4 + [True]


def test_without_its_free_a_value_lives_on():
    """The control: the same program with frees taken out keeps everything."""
    program = chain(5)
    step = step_of(program)
    kept = Ordered(
        program=program,
        actions=tuple(a for a in serial(program).actions if not isinstance(a, Free)),
    )
    made: list[weakref.ref] = []
    alive: list[int] = []

    def add(x: Thing, w: Thing) -> Thing:
        alive.append(sum(ref() is not None for ref in made))
        made.append(weakref.ref(thing := Thing()))
        return thing

    step = replace(step, templates={"chain": kept})
    bind(step, bodies={"add": add}, statics={"w.norm": Thing()}, lanes=HostLanes()).run(
        {"x": Thing()}
    )
    assert alive == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("drops", "dies"), [(("x",), True), ((), False)])
def test_an_input_dies_with_its_last_reader_where_the_step_drops_it(drops, dies):
    seen: list[bool] = []
    thing = Thing()
    watch = weakref.ref(thing)

    def add(x: Thing, w: Thing) -> Thing:
        seen.append(watch() is not None)
        return Thing()

    step = step_of(chain(3), drops=drops)
    bound = bind(step, bodies={"add": add}, statics={"w.norm": Thing()}, lanes=HostLanes())
    environment = {"x": thing}
    del thing
    bound.run(environment)
    assert seen == [True, not dies, not dies]


def test_a_frame_is_made_anew_each_time():
    def add(x: int, w: int) -> int:
        return x + w

    bound = bind(step_of(chain(3)), bodies={"add": add}, statics={"w.norm": 1}, lanes=HostLanes())
    assert [bound.run({"x": x})["y"] for x in (1, 5)] == [4, 8]


def test_attributes_are_bound_with_the_body():
    o = Recorder("norm")
    x, w = o.input("x", "T D"), o.input("w.norm", "D")
    y, _ = o.call("rms_norm", x, w, eps=0.5)
    seen: list[float] = []

    def rms_norm(x: object, w: object, *, eps: float) -> tuple[object, object]:
        seen.append(eps)
        return x, w

    step = step_of(o.finish(y))
    bind(step, bodies={"rms_norm": rms_norm}, statics={"w.norm": 0}, lanes=HostLanes()).run(
        {"x": 1}
    )
    assert seen == [0.5]


def test_a_missing_body_is_found_when_binding_not_when_running():
    with pytest.raises(KeyError, match="add"):
        bind_template(serial(chain(1)), bodies={}, lanes=HostLanes())


# ---- many ranks --------------------------------------------------------------------------------


LAYOUT = Layout(sp=2, ep=2)


def stages() -> tuple[list[Stage], StackedWorld]:
    plan_of = partial(models.plan, models.mixtral_like())
    made = agreement.stack(plan_of, LAYOUT, bodies=reference_bodies())
    return list(made.stages), made.world


def run(ranks: list[Stage], world: StackedWorld) -> list[dict]:
    micro_batches = models.batches(models.mixtral_like(), 1)
    environments = [
        stage.environment(
            [agreement.share(stage.plan, batch) for batch in micro_batches],
            divisor=100.0,
            rates=Rates(lr=0.0, weight_decay=0.0, step=1),
        )
        for stage in ranks
    ]
    run_together([stage.bound for stage in ranks], environments, world.pending)
    return environments


def test_unchanged_ranks_finish():
    found = run(*stages())
    assert torch.equal(found[0]["stats"], found[1]["stats"])


def test_a_missing_post_is_reported_with_rank_task_and_group():
    program = _cross()
    one, two = program.tasks
    whole = (Post(one), Post(two), Wait(one), Wait(two))
    bounds, world = _bound_ranks(program, [whole, (Post(two), Wait(two))])
    with pytest.raises(DeadlockError) as error:
        run_together(bounds, _environments(), world.pending)
    message = str(error.value)
    assert "rank 0 waits for all_to_all;" in message
    assert "axis sp" in message
    assert "posted by ranks [0], missing ranks [1]" in message


def test_a_rank_that_ends_early_is_missing_from_the_pending_collective():
    """Rank 1 stops before the last template; rank 0 waits for it in vain."""
    ranks, world = stages()
    short = replace(ranks[1].bound, instances=ranks[1].bound.instances[:-1])
    ranks[1] = replace(ranks[1], bound=short)
    with pytest.raises(DeadlockError) as error:
        run(ranks, world)
    message = str(error.value)
    assert "rank 0 waits for sum_statistics" in message
    assert "axis world" in message
    assert "missing ranks [1]" in message
    assert "rank 1 waits" not in message, "it has finished"


def test_groups_waited_for_in_opposite_order_deadlock_and_both_are_named():
    """Rank 0 waits for `sp` before it posts to `ep`, rank 1 the other way round."""
    program = _cross()
    one, two = program.tasks
    orders = [
        (Post(one), Wait(one), Post(two), Wait(two)),
        (Post(two), Wait(two), Post(one), Wait(one)),
    ]
    bounds, world = _bound_ranks(program, orders)
    with pytest.raises(DeadlockError) as error:
        run_together(bounds, _environments(), world.pending)
    message = str(error.value)
    assert "rank 0 waits for all_to_all, rank 1 waits for all_to_all_2" in message
    assert "axis sp" in message
    assert "axis ep" in message


def test_one_group_in_another_order_names_both_calls():
    program = _cross(axes=("sp", "sp"))
    one, two = program.tasks
    orders = [
        (Post(one), Wait(one), Post(two), Wait(two)),
        (Post(two), Wait(two), Post(one), Wait(one)),
    ]
    bounds, world = _bound_ranks(program, orders)
    with pytest.raises(
        CommunicationError, match=r"axis sp .*rank 0 posted.*here.*rank 1 posted.*there"
    ):
        run_together(bounds, _environments(), world.pending)


def _cross(axes: tuple[str, str] = ("sp", "ep")) -> Program:
    """Two collectives that do not depend on each other."""
    o = Recorder("cross")
    x = o.input("x", "N P")
    (a,) = o.call("all_to_all", x, axis=axes[0], label="here")
    (b,) = o.call("all_to_all", x, axis=axes[1], label="there")
    return o.finish(a, b)


def _environments(ranks: int = 2) -> list[dict]:
    return [{"x": torch.zeros(4, 1)} for _ in range(ranks)]


def _bound_ranks(
    program: Program, orders: list[tuple[Action, ...]], mesh: Mesh | None = None
) -> tuple[list[BoundStep], StackedWorld]:
    world = StackedWorld(mesh or Mesh(sp=2, ep=2))
    step = step_of(program, drops=())
    bounds = []
    for rank, actions in enumerate(orders):
        ordered = Ordered(program=program, actions=actions)
        changed = replace(step, templates={program.name: ordered})
        bodies = collective_bodies(world.transport(rank))
        bounds.append(bind(changed, bodies=bodies, statics={}, lanes=HostLanes()))
    return bounds, world


def test_ranks_that_meet_within_a_round_are_not_taken_for_stuck():
    """Ranks 0 and 1 post and complete `a` in one round: what is pending is the same behind it."""
    o = Recorder("meeting")
    x = o.input("x", "N P")
    axes = {"q": "dense", "z": "sp", "a": "sp", "v": "edp", "w": "edp"}
    made = [o.call("all_to_all", x, axis=axis, label=label)[0] for label, axis in axes.items()]
    program = o.finish(*made)
    tasks = dict(zip(axes, program.tasks, strict=True))
    texts = ("z! z? a! a? w! w? q! q?", "q! z! z? v! v? a! a? q?", "w! w? q! q?", "v! v? q! q?")
    orders = [
        tuple((Post if word[1] == "!" else Wait)(tasks[word[0]]) for word in text.split())
        for text in texts
    ]
    bounds, world = _bound_ranks(program, orders, Mesh(dp=2, sp=2, ep=2))
    run_together(bounds, _environments(4), world.pending)


def test_a_collective_is_a_wait_and_a_run_is_not():
    program = training_step(models.plan(models.mixtral_like(), LAYOUT)).templates["moe.forward"]
    bodies = dict.fromkeys((t.body for t in program.program.tasks), Thing)
    bound = bind_template(program, bodies=bodies, lanes=HostLanes())
    names = [name for _, name in bound.waits.values()]
    expected = [a.task.name for a in program.actions if isinstance(a, Wait)]
    assert names == expected == [t.name for t in program.program.tasks if is_collective(t)]

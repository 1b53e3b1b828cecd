import json
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from tests.compose.test_first import added

from weft.compose import step as step_module
from weft.compose.plan import sizes
from weft.compose.recipe import plan as make_plan
from weft.compose.step import Step, training_step
from weft.config.load import build
from weft.parallel.layout import Dispatch, Layout
from weft.planner import whole as room
from weft.planner.cost import Rates, rates, seconds
from weft.planner.machine import Beside, Machine, Measured, machine
from weft.planner.play import COMPUTE
from weft.planner.whole import HOST, ZERO, Whole, play_step
from weft.planner.work import work
from weft.telemetry.trace import SEGMENT
from weft.testing import models

H800 = machine("H800")
GATHER = Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER)


def composed(layout: Layout = GATHER, order: str = "overlapped", **changes) -> Step:
    made = models.plan(models.large_mixtral(), layout, precision="bfloat16", order=order)
    return training_step(replace(made, sequence=4096, **changes))


def played(step: Step, found: Machine = H800) -> Whole:
    return play_step(step, rates(found))


def with_measured(**measured) -> Machine:
    return replace(H800, measured=Measured(**measured))


def test_every_task_is_on_its_lane_once_an_instance():
    step = composed()
    whole = played(step, with_measured(beside=Beside(compute=1.0, wire=1.0)))
    ran = [s.name for s in whole.spans if s.lane == COMPUTE and not s.name.startswith("wait")]
    compute = sum(
        task.lane == "compute" and _costs(task, step.templates[one.template].program, step)
        for one in step.instances
        for task in step.templates[one.template].program.tasks
    )
    assert len(ran) == compute + 1  # what is cleared before the first
    assert ran[0] == ZERO
    segments = [s.name for s in whole.spans if s.lane == SEGMENT]
    assert segments == [one.template for one in step.instances]


def _costs(task, program, step) -> bool:
    return seconds(work(task, program, sizes(step.plan)), rates(H800)) > 0


def test_time_divides_into_products_others_and_waits():
    whole = played(composed())
    assert whole.products + whole.others + sum(whole.exposed.values()) == pytest.approx(
        whole.seconds
    )
    assert min(whole.products, whole.others, *whole.exposed.values()) > 0


def test_a_serial_order_exposes_every_collective_and_an_overlapped_one_fewer():
    serial, beside = played(composed(order="serial")), played(composed())
    assert sum(beside.exposed.values()) < sum(serial.exposed.values())
    assert beside.seconds < serial.seconds


def test_work_beside_a_collective_is_slower_and_so_is_the_wire():
    step = composed()
    free = played(step, with_measured(beside=Beside(compute=1.0, wire=1.0)))
    slow = played(step, with_measured(beside=Beside(compute=1.5, wire=1.0)))
    wire = played(step, with_measured(beside=Beside(compute=1.0, wire=2.0)))
    assert free.seconds < slow.seconds
    assert sum(free.exposed.values()) < sum(wire.exposed.values())
    serial = composed(order="serial")
    alone = [
        played(serial, with_measured(beside=Beside(compute=c, wire=1.0))).seconds
        for c in (1.0, 1.5)
    ]
    assert alone[0] == pytest.approx(alone[1])  # nothing is beside anything


def test_a_host_that_is_slow_is_waited_for_and_one_that_is_ahead_is_not():
    step = composed(Layout(sp=2, ep=2, dispatch=Dispatch.ALL_TO_ALL))
    bodies = {t.body for o in step.templates.values() for t in o.program.tasks}
    quick = played(step, with_measured(issue=dict.fromkeys(bodies, 1e-9)))
    slow = played(step, with_measured(issue=dict.fromkeys(bodies, 1e-2)))
    tasks = sum(len(step.templates[one.template].program.tasks) for one in step.instances)
    assert quick.exposed.get(HOST, 0.0) < 1e-3 * quick.seconds
    assert slow.seconds >= 1e-2 * tasks
    assert slow.exposed[HOST] > 0.5 * slow.seconds


def test_a_body_that_nobody_timed_is_issued_like_the_others():
    step = composed()
    bodies = sorted({t.body for o in step.templates.values() for t in o.program.tasks})
    every = with_measured(issue=dict.fromkeys(bodies, 1e-3))
    some = [b for i, b in enumerate(bodies) if i % 2 or b.endswith("_to_host")]
    few = with_measured(issue=dict.fromkeys(some, 1e-3))
    assert played(step, few).seconds == pytest.approx(played(step, every).seconds)


def test_the_host_stops_where_it_needs_numbers():
    """After a host task the next kernel waits for its launch: that task's own time is exposed."""
    step = composed(Layout(sp=2, ep=2, dispatch=Dispatch.ALL_TO_ALL))
    bodies = {t.body for o in step.templates.values() for t in o.program.tasks}
    quick = dict.fromkeys(bodies, 1e-9)
    stops = sum(
        task.body == "splits_to_host"
        for one in step.instances
        for task in step.templates[one.template].program.tasks
    )
    free = played(step, with_measured(issue=quick))
    held = played(step, with_measured(issue={**quick, "splits_to_host": 1e-3}))
    assert stops > 0
    assert held.seconds - free.seconds == pytest.approx(stops * 1e-3, rel=0.5)


def test_a_step_finds_the_host_as_far_ahead_as_it_leaves_it(monkeypatch):
    """A step whose first segment alone is issued for longer than it runs: behind another step the
    host is ahead of it by what it gained on the rest.
    """
    step = composed(Layout())
    every = {t.body for o in step.templates.values() for t in o.program.tasks}
    first = {t.body for t in step.templates[step.instances[0].template].program.tasks}
    issue = {body: 5e-3 if body in first else 1e-9 for body in every}
    steady = played(step, with_measured(issue=issue))
    drain = room._Device.drain
    monkeypatch.setattr(room._Device, "drain", lambda d: (drain(d), setattr(d, "host", d.now)))
    cold = played(step, with_measured(issue=issue))  # as if each step waited for its end
    assert cold.exposed[HOST] > 5e-3
    assert steady.exposed.get(HOST, 0.0) < 0.1 * cold.exposed[HOST]
    assert steady.seconds == pytest.approx(cold.seconds - cold.exposed[HOST], rel=0.01)


def test_host_time_is_that_of_every_action_whatever_it_waits_for():
    step = composed(Layout(sp=2, ep=2, dispatch=Dispatch.ALL_TO_ALL))
    bodies = {t.body for o in step.templates.values() for t in o.program.tasks}
    tasks = sum(len(step.templates[one.template].program.tasks) for one in step.instances)
    for cost in (1e-6, 1e-2):
        found = played(step, with_measured(issue=dict.fromkeys(bodies, cost)))
        assert found.issue == pytest.approx(cost * tasks)


def test_a_step_is_longer_on_a_slower_machine():
    step = composed()
    slower = replace(H800, device=replace(H800.device, peak_flops=H800.device.peak_flops / 2))
    assert played(step, slower).products > 1.8 * played(step).products


def test_model_flops_are_of_the_step_and_its_ranks():
    step = composed()
    whole = played(step)
    tokens = step.plan.micro_batches * step.plan.tokens
    assert whole.tokens_per_s * whole.seconds == pytest.approx(tokens)
    assert 0 < whole.flops < Rates(machine=H800, constants=rates(H800).constants).product_flops


RECORDS = Path(__file__).parents[2] / "benchmarks/results/h200/predict.jsonl"
ALONE = [o for o in map(json.loads, RECORDS.read_text().splitlines()) if " one" in o["name"]]


def recorded() -> list[Step]:
    """The steps of one GPU on record."""
    return [training_step(make_plan(build(tomllib.loads(one["config"])), 0)) for one in ALONE]


def errors(found: Machine, made: Sequence[Step]) -> list[float]:
    took = [one["step_ms"]["median"] * 1e-3 for one in ALONE]
    return [abs(played(step, found).seconds / t - 1) for step, t in zip(made, took, strict=True)]


def test_recorded_steps_of_one_gpu_take_what_they_took():
    assert len(ALONE) >= 24
    found = errors(machine("H200"), recorded())
    assert median(found) < 0.05
    assert max(found) < 0.1


def test_a_step_that_writes_its_first_gradients_is_shorter(monkeypatch):
    """By what is not zeroed, by what its products need not read, but for what the host then shows
    of itself.
    """
    config = build(tomllib.loads(ALONE[0]["config"]))
    writing = training_step(make_plan(config, 0))
    monkeypatch.setattr(step_module, "begun", added)
    adding = training_step(make_plan(config, 0))
    one, other = (played(step, machine("H200")) for step in (writing, adding))
    zeros = [next(s.stop - s.start for s in w.spans if s.name == ZERO) for w in (one, other)]
    assert 0 < zeros[0] < 0.1 * zeros[1]
    saved = other.products - one.products
    assert 0 < saved < 0.1 * other.products
    hosts = one.exposed.get(HOST, 0.0) - other.exposed.get(HOST, 0.0)
    expected = zeros[1] - zeros[0] + saved
    assert other.seconds - one.seconds + hosts == pytest.approx(expected, rel=0.05)


def test_a_machine_with_slower_products_would_be_noticed():
    known = machine("H200")
    slow = tuple(replace(one, flops=one.flops / 1.5) for one in known.measured.products)
    slower = replace(known, measured=replace(known.measured, products=slow))
    assert max(errors(slower, recorded())) > 0.12

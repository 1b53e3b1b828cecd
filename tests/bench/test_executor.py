"""The executor is measured on the schedule it runs, with bodies that do nothing."""

import time

import pytest
import torch

from weft.bench import executor
from weft.bench.executor import idle, layer_step, measure
from weft.graph.opset import Lane
from weft.runtime.lanes import HostLanes

CPU = torch.device("cpu")


def test_the_schedule_is_a_layer_forward_and_backward_with_its_collectives() -> None:
    step = layer_step()
    assert [i.template for i in step.instances] == ["moe.forward", "moe.backward"]
    for ordered in step.templates.values():
        lanes = {task.lane for task in ordered.program.tasks}
        assert {Lane.COMPUTE, Lane.COMM} <= lanes


def test_idle_bodies_run_every_task_and_leave_the_environment_as_a_real_step_does() -> None:
    step = layer_step()
    bound, environment = idle(step, CPU, HostLanes())
    left = bound.run(environment.copy())
    written = {key for i in step.instances for key in i.writes.values()}
    dropped = {key for i in step.instances for key in i.drops}
    assert set(left) == (set(environment) | written) - dropped


def test_the_figures_are_those_of_the_schedule() -> None:
    found = measure(CPU, repeats=2)
    programs = [layer_step().templates[n].program for n in ("moe.forward", "moe.backward")]
    assert found.tasks == sum(len(p.tasks) for p in programs)
    assert found.closures > found.tasks  # waits and frees
    assert 0 < found.task_us.least <= found.task_us.median
    assert found.crossing_us is None
    assert executor.record(found)["task_us"] == found.task_us.record()


def test_a_slow_body_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def sluggish(result: object) -> object:
        def body(*_inputs: object, **_attributes: object) -> object:
            time.sleep(1e-4)
            return result

        return body

    monkeypatch.setattr(executor, "_WARM_UP", 1)
    monkeypatch.setattr(executor, "_RUNS", 1)
    monkeypatch.setattr(executor, "_returning", sluggish)
    slow = measure(CPU, repeats=1)
    assert slow.task_us.median > 100
    assert "NOT met" in executor.render(slow)


@pytest.mark.gpu
def test_a_lane_crossing_is_measured_on_a_gpu() -> None:
    found = measure(torch.device("cuda", 0), repeats=3)
    assert found.crossing_us is not None
    assert found.crossing_us.median > 0
    assert "lane crossing" in executor.render(found)

"""A step's segments follow one another, each as its template is drawn."""

import itertools
from pathlib import Path

import pytest
from tests.system.conftest import RECIPE

from weft.compose.price import Nominal
from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.compose.timeline import place_step
from weft.config.load import build
from weft.graph.program import Program
from weft.schedule.action import Post, Run, is_collective
from weft.schedule.layer import serial
from weft.testing.cut import cut_step


@pytest.mark.parametrize("layout", [(), ("parallel.sp=2", "parallel.ep=2")])
def test_every_task_of_every_segment_is_placed_once_and_in_turn(
    layout: tuple[str, ...], tmp_path: Path
) -> None:
    step = training_step(plan(build(RECIPE, (f"data.path={tmp_path}", *layout)), 0))
    placed = list(place_step(step, Nominal()))
    assert [p.template for p in placed] == [i.template for i in step.instances]
    for before, after in itertools.pairwise(placed):
        assert after.start == before.start + before.timeline.seconds
    for p in placed:
        actions = step.templates[p.template].actions
        tasks = [a.task.name for a in actions if isinstance(a, Run | Post)]
        assert sorted(bar.task.name for bar in p.timeline.bars) == sorted(tasks)


def test_what_crosses_an_edge_in_flight_arrives_no_earlier_and_hides_under_what_comes_between(
    tmp_path: Path,
) -> None:
    """Cut behind its first collective and followed by work, a segment waits for less."""
    layout = ("parallel.sp=2", "parallel.ep=2", "overlap.order=serial")
    whole = training_step(plan(build(RECIPE, (f"data.path={tmp_path}", *layout)), 0))
    cut = cut_step(whole, _behind_first_collective, serial)
    placed = list(place_step(cut, Nominal(latency=1.0)))  # nothing here is as long
    busy: dict[str, float] = {}
    for p in placed:
        for bar in p.timeline.bars:
            if is_collective(bar.task):
                assert p.start + bar.start >= busy.get(bar.lane, 0.0)
                busy[bar.lane] = p.start + bar.stop
    joining = [p for p in placed if cut.templates[p.template].program.joins]
    assert joining
    for p in joining:
        assert p.timeline.exposed[0] == (0.0, pytest.approx(1.0, rel=1e-3))


def _behind_first_collective(program: Program) -> int:
    places = (i + 1 for i, task in enumerate(program.tasks) if is_collective(task))
    return next(places, len(program.tasks))

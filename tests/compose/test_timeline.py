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
from weft.schedule.action import Post, Run


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

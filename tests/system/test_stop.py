"""Asked to stop, a run finishes its step, saves, says so, and goes on later as if nothing was."""

import os
import signal
from pathlib import Path

import pytest
from tests.system.conftest import LAYOUTS, Recipe

from weft.checkpoint.prune import list_checkpoints
from weft.checkpoint.verify import read_manifest
from weft.telemetry import events
from weft.testing.kill import Run, differences, finish, last_step
from weft.trainer.stop import STOPPED


@pytest.mark.parametrize(
    ("layout", "number", "whom"),
    [
        ("one rank", signal.SIGINT, "supervisor"),
        ("dp2", signal.SIGTERM, "supervisor"),
        ("sp2 ep2", signal.SIGTERM, "second rank"),
    ],
)
def test_a_run_that_was_stopped_goes_on_bitwise(
    recipe: Recipe, layout: str, number: int, whom: str
) -> None:
    settings = (*LAYOUTS[layout], "train.checkpoint_every=100", "train.steps=16")
    expected = finish(recipe("whole", *settings))
    config = recipe("stopped", *settings)
    run = Run(config)
    assert run.reaches(3)
    seen = last_step(run.folder)
    os.kill(run.pid if whom == "supervisor" else run.pids()[1], number)
    assert run.wait() == STOPPED, run.output.read_text()
    (checkpoint,) = list_checkpoints(run.folder)
    stopped = read_manifest(checkpoint).step
    assert seen <= stopped < config.train.steps
    assert stopped == last_step(run.folder)
    assert f"stopped after step {stopped}, as asked" in run.output.read_text()
    assert [e["step"] for e in events.read(run.folder) if e["event"] == "stop"] == [stopped]
    assert differences(finish(config), expected) == []


def test_a_run_that_saves_nothing_stops_without(recipe: Recipe) -> None:
    run = Run(recipe("run", "train.steps=100000", "train.checkpoint_every=0"))
    assert run.reaches(2)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM
    assert "without saving" in run.output.read_text()
    assert not list(Path(run.folder).glob("step-*"))

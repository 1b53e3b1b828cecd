"""A run that is killed with -9 and started again is, bit for bit, the run that was not."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
from tests.system.conftest import LAYOUTS, Recipe

from weft.checkpoint.prune import list_checkpoints
from weft.testing.kill import Landing, Outcome, Run, Tamper, differences, finish, outcome, survive
from weft.trainer import rank
from weft.trainer.feed import Feed
from weft.trainer.session import Session

KILLS = {"one rank": 1, "dp2": 1, "sp2 ep2": 2, "dp2 ep2": 1}  # scripts/chaos has forty more
ORDERS = {"one rank": "serial", "dp2": "serial", "sp2 ep2": "overlapped", "dp2 ep2": "overlapped"}
LENGTH = ("train.steps=16", "train.eval_every=8")  # three checkpoints and the last
SEED = 15
FAIL_POINTS = (
    "after_shard_write",
    "before_manifest",
    "after_manifest",
    "before_rename",
    "in_prune",
)


def test_killed_runs_end_as_if_nothing_had_happened(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    landed: list[Landing] = []
    steps = 0
    for number, (layout, order) in enumerate(ORDERS.items()):
        settings = (*LAYOUTS[layout], *LENGTH, f"overlap.order={order}")
        expected = finish(recipe(f"whole-{number}", *settings))
        config = recipe(f"killed-{number}", *settings)
        seed = SEED + number
        found, landings = survive(config, kills=KILLS[layout], seed=seed)
        with capsys.disabled():
            print(f"\n{layout}, seed {seed}: " + "; ".join(map(str, landings)), end="")
        assert differences(found, expected) == [], f"{layout}, {seed=}"
        assert_tidy(Path(config.train.run_dir), steps=config.train.steps)
        landed += landings
        steps = config.train.steps
    assert len(landed) >= sum(KILLS.values()) - 1, landed  # one may come too late on a busy machine
    between = [landing for landing in landed if landing.is_between(steps)]
    assert 2 * len(between) >= sum(KILLS.values()), landed


def assert_tidy(run_dir: Path, *, steps: int) -> None:
    """Nothing half done is left behind, and no more checkpoints than are to be kept."""
    assert not [*run_dir.glob("*.partial"), *run_dir.glob("*.pruned"), *run_dir.glob("*.replaced*")]
    kept = [folder.name for folder in list_checkpoints(run_dir)]
    assert kept == [f"step-{steps:08d}", f"step-{steps - 4:08d}"]


# ---- inside a save ----


class DieAt:
    """A fail-point that ends the process, at each place of a save once."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def __call__(self, _rank: int, point: str) -> None:
        passed = sorted(self.marks.iterdir())
        wanted = FAIL_POINTS[len(passed)] if len(passed) < len(FAIL_POINTS) else None
        if point == wanted:
            (self.marks / f"{len(passed)}-{point}").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_at_any_point_of_a_save_changes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    expected = finish(recipe("whole"))
    config = recipe("killed")
    marks = tmp_path / "marks"
    marks.mkdir()
    for _ in FAIL_POINTS:
        run = Run(config, fail_point=DieAt(marks))
        assert run.wait() == -9, run.output.read_text()
    found = finish(config)
    assert [mark.name[2:] for mark in sorted(marks.iterdir())] == list(FAIL_POINTS)
    assert differences(found, expected) == []
    assert_tidy(Path(config.train.run_dir), steps=config.train.steps)


# ---- sabotage ----


def forget_moments() -> None:
    """Tampers with restoring: the optimizer starts from zero."""
    honest = rank.restore_session

    def restore(session: Session, folder: Path) -> int:
        start = honest(session, folder)
        for kind, _, tensor in session.stage.state.shards():
            if kind != "master":
                tensor.zero_()
        return start

    rank.restore_session = restore


def shift_order() -> None:
    """Tampers with restoring: the data goes on one step too far."""
    honest, read = rank.restore_session, Feed.read

    def restore(session: Session, folder: Path) -> int:
        Feed.read = lambda feed, plan, step: read(feed, plan, step + 1)
        return honest(session, folder)

    rank.restore_session = restore


@pytest.mark.parametrize(
    ("tamper", "steps_until_it_shows"),
    [
        pytest.param(forget_moments, 1, id="moments"),  # the loss of a step is of the one before
        pytest.param(shift_order, 0, id="order"),
    ],
)
def test_a_resumption_that_loses_something_is_found(
    recipe: Recipe, tamper: Tamper, steps_until_it_shows: int
) -> None:
    expected = finish(recipe("whole"))
    found, landings = survive(recipe("killed"), kills=1, seed=SEED, tamper=tamper)
    (landing,) = landings
    assert landing.saved > 0, landing
    right = [step for step, loss in found.losses.items() if loss == expected.losses[step]]
    assert right == list(range(1, landing.saved + steps_until_it_shows + 1))
    assert found.digest != expected.digest


def test_differences_are_all_found() -> None:
    one = Outcome(losses={1: "0x1p+0", 2: "0x1p+1"}, validation={2: 1.0}, digest="a")
    assert differences(one, one) == []
    for changed in (
        {"losses": {1: "0x1p+0", 2: "0x1.8p+1"}},
        {"losses": {1: "0x1p+0"}},
        {"validation": {2: 1.5}},
        {"digest": "b"},
    ):
        assert len(differences(dataclasses.replace(one, **changed), one)) == 1


def test_a_finished_run_started_again_changes_nothing(recipe: Recipe) -> None:
    config = recipe("run", "train.steps=8", "train.eval_every=4")
    expected = finish(config)
    folder = Path(config.train.run_dir)
    summary = (folder / "summary.json").read_text()
    assert finish(config) == expected == outcome(folder)
    again = (folder / "summary.json").read_text()
    assert without_seconds(again) == without_seconds(summary)


def without_seconds(text: str) -> list[str]:
    return [line for line in text.splitlines() if '"seconds"' not in line]

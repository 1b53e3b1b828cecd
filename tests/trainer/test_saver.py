"""A save in the background is a save; how it ended is told at the end of a later step."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.trainer.conftest import ALONE

from weft.checkpoint.background import Finish, Snapshot
from weft.checkpoint.save import Piece
from weft.config.run import RunConfig
from weft.errors import CheckpointError
from weft.runtime.executor import Environment
from weft.runtime.stage import Rates, Stage
from weft.runtime.state import initialise
from weft.testing.kill import digest
from weft.trainer import saver
from weft.trainer.saver import Saver
from weft.trainer.session import Place, open_session


def test_saved_in_the_background_is_saved(few_steps: RunConfig) -> None:
    session = open_session(few_steps, ALONE)
    initialise(session.stage.state, seed=0)
    by = Saver(session)
    blocking = by.save(1).ended.folder
    assert blocking is not None
    expected = digest(blocking)
    assert by.begin(2) is None
    session.snapshot.hold()
    for _, _, tensor in session.stage.state.shards():
        tensor.zero_()
    outcome = by.wait()
    assert outcome is not None
    assert outcome.ended.folder == Path(few_steps.train.run_dir) / "step-00000002"
    assert digest(outcome.ended.folder) == expected
    assert by.look() is by.wait() is None


def copied_beside_a_step(config: RunConfig, place: Place) -> tuple[str, str]:
    """The digest of a state, and of its checkpoint that is copied while a step runs."""
    session = open_session(config, place)
    initialise(session.stage.state, seed=0)
    by = Saver(session)
    expected = by.save(1).ended.folder
    by.begin(2)
    read = session.feed.read(session.stage.plan, 0)
    session.stage.train(
        session.feed.stage(session.stage.plan, read, place.device),
        divisor=read.divisor,
        rates=Rates(lr=0.1, weight_decay=0.1, step=1),
    )
    outcome = by.wait()
    assert outcome is not None
    assert expected is not None
    assert outcome.ended.folder is not None
    return digest(expected), digest(outcome.ended.folder)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("held", [True, False])
def test_the_update_waits_until_the_state_before_it_is_copied(
    few_steps: RunConfig, precision: str, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the wait, which is the control, the checkpoint has something of the next step."""
    stepped, honest, begin = threading.Event(), Stage.train, Snapshot.begin

    def train(stage: Stage, *given, **settings) -> Environment:
        made = honest(stage, *given, **settings)
        stepped.set()
        return made

    def begin_late(snapshot: Snapshot, pieces: Sequence[Piece]) -> Finish:
        finish = begin(snapshot, pieces)

        def late() -> list[Piece]:
            stepped.wait(0.3 if held else 20)  # a step that is held does not end before
            return finish()

        return late

    monkeypatch.setattr(Stage, "train", train)
    monkeypatch.setattr(Snapshot, "begin", begin_late)
    if not held:
        monkeypatch.setattr(Snapshot, "hold", lambda _: None)
    settled = few_steps.train.model_copy(update={"precision": precision})
    config = few_steps.model_copy(update={"train": settled})
    before, saved = copied_beside_a_step(config, ALONE)
    assert (saved == before) is held


@pytest.mark.gpu
def test_the_state_of_a_device_is_copied_before_a_step_changes_it(few_steps: RunConfig) -> None:
    place = replace(ALONE, device=torch.device("cuda", torch.cuda.current_device()))
    before, saved = copied_beside_a_step(few_steps, place)
    assert saved == before


def test_the_next_save_waits_for_the_one_under_way(
    few_steps: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(session, *, step, **others) -> Path:
        raise CheckpointError(f"no space left at step {step}")

    session = open_session(few_steps, ALONE)
    by = Saver(session)
    monkeypatch.setattr(saver, "save_session", fail)
    assert by.begin(1) is None
    before = by.begin(2)
    assert before is not None
    assert str(before.ended.error) == "no space left at step 1"
    assert str(by.save(3).ended.error) == "no space left at step 3"

"""A save in the background is a save; how it ended is told at the end of a later step."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.trainer.conftest import ALONE

from weft.checkpoint.background import Finish, Snapshot
from weft.checkpoint.save import Piece
from weft.config.run import RunConfig
from weft.errors import CheckpointError
from weft.runtime.stage import Rates
from weft.runtime.state import initialise
from weft.testing.kill import digest
from weft.trainer import saver
from weft.trainer.saver import Saver
from weft.trainer.session import open_session

CPU = torch.device("cpu")


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("held", [True, False])
def test_the_update_waits_until_the_state_before_it_is_copied(
    few_steps: RunConfig, precision: str, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the wait, which is the control, the checkpoint has something of the next step."""
    if not held:
        monkeypatch.setattr(Snapshot, "hold", lambda _: None)
    train = few_steps.train.model_copy(update={"precision": precision})
    session = open_session(few_steps.model_copy(update={"train": train}), ALONE)
    initialise(session.stage.state, seed=0)
    by, go, honest = Saver(session), threading.Event(), session.snapshot.begin
    expected = by.save(1).ended.folder
    assert expected is not None

    def begin(pieces: Sequence[Piece]) -> Finish:
        finish = honest(pieces)

        def late() -> list[Piece]:
            go.wait(0.3 if held else 20)  # nobody says go to who is held
            return finish()

        return late

    monkeypatch.setattr(session.snapshot, "begin", begin)
    by.begin(2)
    read = session.feed.read(session.stage.plan, 0)
    session.stage.train(
        session.feed.stage(session.stage.plan, read, CPU),
        divisor=read.divisor,
        rates=Rates(lr=0.1, weight_decay=0.1, step=1),
    )
    go.set()
    outcome = by.wait()
    assert outcome is not None
    assert outcome.ended.folder is not None
    assert (digest(outcome.ended.folder) == digest(expected)) is held


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

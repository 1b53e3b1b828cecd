"""A save in the background is a save; how it ended is told at the end of a later step."""

from pathlib import Path

import pytest
from tests.trainer.conftest import ALONE

from weft.config.run import RunConfig
from weft.errors import CheckpointError
from weft.runtime.state import initialise
from weft.testing.kill import digest
from weft.trainer import saver
from weft.trainer.saver import Saver
from weft.trainer.session import open_session


def test_saved_in_the_background_is_saved(few_steps: RunConfig) -> None:
    session = open_session(few_steps, ALONE)
    initialise(session.stage.state, seed=0)
    by = Saver(session)
    blocking = by.save(1).ended.folder
    assert blocking is not None
    expected = digest(blocking)
    assert by.begin(2) is None
    for _, _, tensor in session.stage.state.shards():
        tensor.zero_()
    outcome = by.wait()
    assert outcome is not None
    assert outcome.ended.folder == Path(few_steps.train.run_dir) / "step-00000002"
    assert digest(outcome.ended.folder) == expected
    assert by.look() is by.wait() is None


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

"""The loop: what is due at which step, and what a save that fails does to it."""

from pathlib import Path

import pytest
from tests.trainer.conftest import ALONE

from weft.compose.plan import OVERFLOW
from weft.config.run import RunConfig
from weft.errors import CheckpointError
from weft.optim.lr import learning_rate
from weft.runtime.state import initialise
from weft.telemetry import events
from weft.telemetry.metrics import FILE, Metrics, read
from weft.trainer import loop, saver
from weft.trainer.session import Session, open_session


class Heard:
    """A display that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[int] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def step(self, record) -> None:
        self.steps.append(record["step"])

    def close(self) -> None:
        raise AssertionError("the loop does not close what it did not open")


def run(config: RunConfig, *, start: int = 0) -> tuple[list[dict], Heard]:
    """The metrics of a run from that many finished steps, and what was said."""
    session = open_session(config, ALONE)
    initialise(session.stage.state, seed=0)
    path = Path(config.train.run_dir) / FILE
    metrics, heard = Metrics(path, {}, first_step=0), Heard()
    try:
        loop.Loop(session, metrics, heard).run(start=start)
    finally:
        metrics.close()
    return read(path), heard


def changed(config: RunConfig, **train: int | str) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def test_each_step_is_taken_shown_and_written_once(few_steps: RunConfig) -> None:
    records, heard = run(few_steps)
    assert [r["step"] for r in records if "loss" in r] == heard.steps == [1, 2, 3, 4]


def test_a_run_goes_on_where_it_stood(few_steps: RunConfig) -> None:
    _, heard = run(few_steps, start=3)
    assert heard.steps == [4]
    _, heard = run(few_steps, start=4)
    assert heard.steps == heard.said == []


def test_evaluation_and_saving_come_in_their_rhythm_and_at_the_end(few_steps: RunConfig) -> None:
    records, heard = run(changed(few_steps, steps=5, eval_every=3, checkpoint_every=2))
    assert [r["step"] for r in records if "validation_loss" in r] == [3, 5]
    assert [text for text in heard.said if ": checkpoint" in text] == [
        f"step {n}: checkpoint {Path(few_steps.train.run_dir) / f'step-{n:08d}'}" for n in (2, 4, 5)
    ]


def test_a_run_may_save_nothing(few_steps: RunConfig) -> None:
    run(changed(few_steps, checkpoint_every=0))
    assert not list(Path(few_steps.train.run_dir).glob("step-*"))


def test_rates_follow_the_schedule_from_its_first_step(few_steps: RunConfig) -> None:
    records, _ = run(few_steps)
    optim = few_steps.optim
    expected = [
        learning_rate(
            step,
            peak=optim.lr,
            floor_ratio=optim.min_lr_ratio,
            warmup=optim.warmup_steps,
            total=few_steps.train.steps,
        )
        for step in range(4)
    ]
    assert [r["lr"] for r in records if "lr" in r] == expected


class Crowded(loop.Loop):
    """A loop whose second step has no room for a row, read so many steps late."""

    def __init__(self, session: Session, metrics: Metrics, heard: Heard, behind: int) -> None:
        super().__init__(session, metrics, heard)
        self.behind, self.full = behind, True

    def _step(self, step: int) -> None:
        if step == 2 and self.full:
            self.session.stage.state.stats[OVERFLOW], self.full = 1, False
        super()._step(step)


def run_crowded(config: RunConfig, behind: int) -> tuple[list[dict], Heard]:
    """The metrics of a run whose second step overflows, and what was said."""
    session = open_session(config, ALONE)
    initialise(session.stage.state, seed=0)
    path = Path(config.train.run_dir) / FILE
    metrics, heard = Metrics(path, {}, first_step=0), Heard()
    Crowded(session, metrics, heard, behind).run(start=0)
    metrics.close()
    return read(path), heard


def losses(records: list[dict]) -> list[str]:
    return [r["loss_hex"] for r in records if "loss" in r]


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_a_step_that_overflows_and_those_behind_it_are_taken_in_their_order(
    few_steps: RunConfig, tmp_path: Path, behind: int
) -> None:
    (tmp_path / "clean").mkdir()
    clean, _ = run(changed(few_steps, run_dir=str(tmp_path / "clean")))
    config = changed(few_steps, checkpoint_every=4)
    records, heard = run_crowded(config, behind)
    assert heard.steps == [1, 2, 3, 4]
    assert losses(records) == losses(clean)
    told = [e for e in events.read(Path(config.train.run_dir)) if e["event"] == "overflow"]
    assert [event["step"] for event in told] == [2]
    assert any(text.startswith("step 2: run again") for text in heard.said)


def test_a_step_behind_one_that_overflowed_would_be_missed_if_it_were_taken(
    few_steps: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clean").mkdir()
    clean, _ = run(changed(few_steps, run_dir=str(tmp_path / "clean")))
    honest = Crowded._step

    def forgetful(crowded: Crowded, step: int) -> None:
        honest(crowded, step)
        crowded.session.stage.state.forgive()

    monkeypatch.setattr(Crowded, "_step", forgetful)
    records, _ = run_crowded(changed(few_steps, checkpoint_every=4), 1)
    assert losses(records) != losses(clean)


def test_a_save_that_fails_is_said_and_the_run_goes_on(
    few_steps: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = saver.save_session

    def save(session, *, step, report, **others):
        if step == 2:
            raise CheckpointError("no space left")
        return honest(session, step=step, report=report, **others)

    monkeypatch.setattr(saver, "save_session", save)
    _, heard = run(few_steps)
    assert "step 2: NO CHECKPOINT WRITTEN: no space left" in heard.said
    assert heard.steps == [1, 2, 3, 4]


def test_a_last_save_that_fails_ends_the_run(
    few_steps: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(session, *, step, report, **others):
        raise CheckpointError(f"no space left at step {step}")

    monkeypatch.setattr(saver, "save_session", save)
    with pytest.raises(CheckpointError, match="no space left at step 4"):
        run(few_steps)

"""A checkpoint of one layout goes on in another: the same state, the same next loss."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.system.conftest import LAYOUTS, Recipe

from weft.checkpoint.format import step_name
from weft.checkpoint.load import Checkpoint
from weft.checkpoint.save import Piece, Progress, alone, save
from weft.config.run import RunConfig
from weft.testing.kill import KINDS, Outcome, Run, digest, finish
from weft.trainer import rank
from weft.trainer.recover import save_session
from weft.trainer.session import Session

SAVED = 4
SOURCE = LAYOUTS["sp2 ep2"]
NODES = ("parallel.dp=4", "parallel.node=2", "parallel.zero=2", "parallel.bucket_elements=4096")
SETTINGS = (f"train.steps={SAVED + 1}", f"train.checkpoint_every={SAVED}", "train.eval_every=99")
BOUNDS = {"float32": 1e-6, "float64": 1e-12}  # relative, of the next loss

Prepare = Callable[[Recipe], tuple[RunConfig, Outcome]]


class SaveWhatWasLoaded:
    """Tampers with restoring: every rank writes what it has just read to another folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> None:
        honest = rank.restore_session

        def restore(session: Session, folder: Path) -> int:
            start = honest(session, folder)
            train = session.config.train.model_copy(update={"run_dir": str(self.folder)})
            config = session.config.model_copy(update={"train": train})
            save_session(
                dataclasses.replace(session, config=config), step=start, report=session_is_silent
            )
            return start

        rank.restore_session = restore


def session_is_silent(text: str) -> None:
    raise AssertionError(text)


def resume_elsewhere(
    recipe: Recipe, source: Path, layout: Sequence[str], precision: str
) -> tuple[Outcome, str]:
    """The outcome of a run from a copy of a checkpoint, and the digest of what it loaded."""
    config = recipe("elsewhere", *SETTINGS, *layout, f"train.precision={precision}")
    run_dir = Path(config.train.run_dir)
    shutil.copytree(source, run_dir / source.name)
    copy = run_dir.with_name("loaded")
    run = Run(config, tamper=SaveWhatWasLoaded(copy))
    assert run.wait() == 0, run.output.read_text()
    loaded = digest(copy / source.name)
    found = outcome_of_the_rest(run_dir)
    shutil.rmtree(run_dir)
    shutil.rmtree(copy)
    return found, loaded


def outcome_of_the_rest(run_dir: Path) -> Outcome:
    """The outcome of a run whose first steps were taken elsewhere."""
    from weft.telemetry import metrics

    (last,) = (r for r in metrics.read(run_dir / metrics.FILE) if "loss_hex" in r)
    assert last["step"] == SAVED + 1
    return Outcome(
        losses={last["step"]: last["loss_hex"]},
        validation={},
        digest=digest(run_dir / step_name(SAVED + 1)),
    )


def relative(found: Outcome, expected: Outcome) -> float:
    ours, theirs = (float.fromhex(o.losses[SAVED + 1]) for o in (found, expected))
    return abs(ours - theirs) / abs(theirs)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_checkpoint_continues_in_any_layout(recipe: Recipe, precision: str) -> None:
    config = recipe("source", *SETTINGS, *SOURCE, f"train.precision={precision}")
    expected = finish(config)
    source = Path(config.train.run_dir) / step_name(SAVED)
    for name, layout in {**LAYOUTS, "nodes": NODES}.items():
        found, loaded = resume_elsewhere(recipe, source, layout, precision)
        assert loaded == digest(source), name
        assert relative(found, expected) <= BOUNDS[precision], name
        if layout == SOURCE:
            assert found.losses[SAVED + 1] == expected.losses[SAVED + 1]
            assert found.digest == expected.digest


def test_a_swapped_expert_is_found(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe("source", *SETTINGS, *SOURCE, "train.precision=float64")
    expected = finish(config)
    source = Path(config.train.run_dir) / step_name(SAVED)
    swapped = swap_experts(source, tmp_path / "swapped")
    found, loaded = resume_elsewhere(recipe, swapped, (), "float64")
    assert loaded == digest(swapped) != digest(source)
    assert relative(found, expected) > BOUNDS["float32"]


def swap_experts(source: Path, run_dir: Path) -> Path:
    """A checkpoint without a fault, in which two experts of the first layer have changed places."""
    first, second = "layers.0.experts.0.", "layers.0.experts.1."
    with Checkpoint.open(source) as checkpoint:
        pieces = []
        for kind in KINDS:
            for name in checkpoint.names(kind):
                other = name.replace(first, "?").replace(second, first).replace("?", second)
                tensor, shape = checkpoint.read(kind, other), checkpoint.shape(kind, name)
                pieces.append(
                    Piece(
                        kind=kind,
                        name=name,
                        shape=shape,
                        start=0,
                        stop=tensor.numel(),
                        tensor=tensor,
                    )
                )
        manifest = checkpoint.manifest
        progress = Progress(step=manifest.step, config=manifest.config, data=manifest.data)
        return save(run_dir, pieces, progress=progress, writer=alone())

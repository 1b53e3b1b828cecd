"""`weft export` writes what a run has learned, and a run starts from what was written."""

from pathlib import Path

import pytest
import torch
from tests.system.conftest import Recipe, corpus, recipe
from tests.trainer.conftest import ALONE, few_steps

from weft.checkpoint.hf.read import open_pretrained
from weft.checkpoint.load import Checkpoint
from weft.cli.export import export
from weft.config.run import RunConfig
from weft.errors import CheckpointError
from weft.model.params import logical
from weft.trainer.launch import train
from weft.trainer.rank import run_rank

__all__ = ["corpus", "few_steps", "recipe"]


@pytest.fixture
def exported(few_steps: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    run_rank(few_steps, ALONE, None)
    export(Path(few_steps.train.run_dir), tmp_path / "hf", dtype="float32")
    assert "from" in capsys.readouterr().out
    return tmp_path / "hf"


def test_what_is_exported_is_the_newest_checkpoint(few_steps: RunConfig, exported: Path) -> None:
    folder = Path(few_steps.train.run_dir) / "step-00000004"
    with Checkpoint.open(folder) as checkpoint, open_pretrained(exported) as pretrained:
        for name in checkpoint.names("master"):
            part = logical(name, checkpoint.shape("master", name))
            ours = checkpoint.read("master", name)
            assert torch.equal(pretrained.read(part).view(-1), ours), name


def test_a_run_starts_from_it(recipe: Recipe, few_steps: RunConfig, exported: Path) -> None:
    """A learning rate of nothing leaves weights as they came; a seed would not give them."""
    start = f"train.init_from={exported}"
    still = ("optim.lr=1e-30", "optim.weight_decay=0.0", "train.seed=9")
    train(recipe("next", start, *still, "train.steps=1", "optim.warmup_steps=1"))
    before = Path(few_steps.train.run_dir) / "step-00000004"
    after = Path(few_steps.train.run_dir).parent / "next" / "step-00000001"
    with Checkpoint.open(before) as old, Checkpoint.open(after) as new:
        for name in old.names("master"):
            assert torch.equal(old.read("master", name), new.read("master", name)), name


def test_another_model_is_refused_before_a_run_begins(recipe: Recipe, exported: Path) -> None:
    wrong = recipe("other", f"train.init_from={exported}", "model.top_k=1")
    with pytest.raises(CheckpointError, match=r"top_k = 2, the recipe says 1"):
        train(wrong)
    assert not Path(wrong.train.run_dir).exists()

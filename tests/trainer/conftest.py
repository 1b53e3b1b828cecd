"""The tiny run of the system tests, and one rank of it in this process."""

from pathlib import Path

import pytest
import torch
from tests.system.conftest import Recipe, corpus, recipe

from weft.config.run import RunConfig
from weft.trainer.session import Place

__all__ = ["ALONE", "corpus", "few_steps", "recipe"]

ALONE = Place(rank=0, world=1, device=torch.device("cpu"), meeting=None)


@pytest.fixture
def few_steps(recipe: Recipe, tmp_path: Path) -> RunConfig:
    """Four steps with a checkpoint every second, its folder made."""
    (tmp_path / "run").mkdir()
    return recipe("run", "train.steps=4", "train.eval_every=4", "train.checkpoint_every=2")

"""A recipe that measures in milliseconds."""

from collections.abc import Callable

import pytest
import torch

from weft.bench.ceilings import Ceilings
from weft.config.load import build
from weft.config.run import RunConfig
from weft.trainer.session import Place

TREE = {
    "name": "tiny",
    "model": {
        "family": "mixtral",
        "vocab": 61,
        "hidden": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "ffn_hidden": 16,
        "experts": 4,
        "top_k": 2,
    },
    "data": {"sequence": 16},
    "optim": {"lr": 1e-3, "warmup_steps": 0},
    "train": {
        "steps": 10,
        "global_batch": 4,
        "micro_batch": 2,
        "precision": "float32",
        "device": "cpu",
        "eval_every": 10,
        "checkpoint_every": 10,
        "threads": 1,
    },
}


@pytest.fixture
def recipe() -> Callable[..., RunConfig]:
    return lambda *overrides: build(TREE, overrides)


@pytest.fixture
def place() -> Place:
    return Place(rank=0, world=1, device=torch.device("cpu"), meeting=None)


@pytest.fixture
def ceilings() -> Ceilings:
    return Ceilings(
        device="cpu-2", dtype="float32", torch=torch.__version__,
        product=1e11, attention=5e10, attention_dgrad=4e10, copy=1e10,
    )  # fmt: skip

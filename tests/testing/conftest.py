"""A recipe to prove: two layers, wide enough for every layout of eight ranks."""

import pytest

from weft.config.load import build
from weft.config.run import RunConfig
from weft.testing.crew import Course
from weft.testing.shrink import shrink
from weft.trainer.feed import open_feed

RECIPE = {
    "name": "small",
    "model": {
        "family": "mixtral",
        "vocab": 300,
        "hidden": 96,
        "layers": 3,
        "heads": 8,
        "kv_heads": 2,
        "head_dim": 32,
        "ffn_hidden": 80,
        "experts": 8,
        "top_k": 2,
    },
    "data": {"source": "text", "sequence": 64, "validation_bytes": 500},
    "optim": {"lr": 1e-2, "warmup_steps": 2},
    "train": {
        "steps": 40,
        "global_batch": 4,
        "micro_batch": 4,
        "eval_every": 10,
        "checkpoint_every": 0,
        "device": "cpu",
    },
}


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The recipe before it is shrunk."""
    corpus = tmp_path_factory.mktemp("corpus")
    for number in range(4):
        words = (str(number * place * place % 9973) for place in range(400))
        (corpus / f"{number}.txt").write_text(" ".join(words))
    return build(RECIPE, (f"data.path={corpus}", f"train.run_dir={corpus / 'run'}"))


@pytest.fixture(scope="session")
def course(config: RunConfig) -> Course:
    """The recipe shrunk, with its corpus."""
    small = shrink(config, quick=True).config
    return Course(config=small, feed=open_feed(small))

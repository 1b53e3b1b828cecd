"""A run so small that a step takes milliseconds, and the command in a forked process."""

import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from weft.cli.main import main
from weft.config.load import build, dump
from weft.config.run import RunConfig
from weft.testing.kill import Forked

WORDS = ("warp", "weft", "loom", "shed", "heddle", "reed", "bobbin", "cloth", "thread", "beam")

RECIPE = {
    "name": "tiny",
    "model": {
        "family": "mixtral",
        "vocab": 257,
        "hidden": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "ffn_hidden": 16,
        "experts": 4,
        "top_k": 2,
    },
    "data": {"source": "text", "sequence": 32, "validation_bytes": 700},
    "optim": {"lr": 1e-2, "warmup_steps": 2},
    "train": {
        "steps": 24,
        "global_batch": 4,
        "micro_batch": 1,
        "eval_every": 12,
        "checkpoint_every": 4,
        "sample_bytes": 0,
        "threads": 1,
        "device": "cpu",
    },
}

LAYOUTS = {
    "one rank": (),
    "dp2": ("parallel.dp=2",),
    "sp2 ep2": ("parallel.sp=2", "parallel.ep=2"),
    "dp2 ep2": ("parallel.dp=2", "parallel.ep=2"),
    "pp2": ("parallel.pp=2", "parallel.pipeline=zero_bubble"),
}

Recipe = Callable[..., RunConfig]


@dataclass(frozen=True)
class Answer:
    """How a command ended, and what it said."""

    code: int
    stdout: str
    stderr: str


Command = Callable[..., Answer]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A few files of words in random order."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(6):
        draw = random.Random(number)
        text = " ".join(draw.choice(WORDS) for _ in range(120))
        (folder / f"{number}.txt").write_text(text + "\n")
    return folder


@pytest.fixture
def recipe(tmp_path: Path, corpus: Path) -> Recipe:
    """Makes the tiny recipe, its run in a folder of that name, with overrides."""

    def make(name: str, *overrides: str) -> RunConfig:
        own = (f"data.path={corpus}", f"train.run_dir={tmp_path / name}")
        return build(RECIPE, (*own, *overrides))

    return make


@pytest.fixture
def weft(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command as a user types it, in a forked process that has imported torch already."""

    def run(*arguments: str) -> Answer:
        output, errors = tmp_path / "stdout", tmp_path / "stderr"
        output.write_text("")
        errors.write_text("")

        def life() -> int:
            os.environ["COLUMNS"] = "100"
            sys.argv = ["weft", *arguments]
            main()
            return 0

        code = Forked(life, output, errors).wait()
        return Answer(code, output.read_text(), errors.read_text())

    return run


@pytest.fixture
def recipe_file(tmp_path: Path, recipe: Recipe) -> Path:
    """The tiny recipe as a file; its run goes to the folder `run` beside it."""
    path = tmp_path / "tiny.toml"
    path.write_text(dump(recipe("run")), encoding="utf-8")
    return path

"""A run so small that a step takes milliseconds, for everything that is broken on purpose."""

import random
from pathlib import Path

from weft.config.load import build
from weft.config.run import RunConfig

WORDS = ("warp", "weft", "loom", "shed", "heddle", "reed", "bobbin", "cloth", "thread", "beam")
STEPS = 24
EVERY = 4  # steps between checkpoints

LAYOUTS = {
    "dp2": ("parallel.dp=2",),
    "sp2 ep2": ("parallel.sp=2", "parallel.ep=2"),
    "dp2 ep2": ("parallel.dp=2", "parallel.ep=2"),
    "pp2": ("parallel.pp=2",),
}
ORDERS = ("serial", "overlapped")

_RECIPE = {
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
        "steps": STEPS,
        "global_batch": 4,
        "micro_batch": 1,
        "eval_every": 12,
        "checkpoint_every": EVERY,
        "sample_bytes": 0,
        "threads": 1,
        "device": "cpu",
    },
}


def tiny(folder: Path, name: str, *overrides: str) -> RunConfig:
    """The recipe of a run in `folder / name`, its corpus beside it."""
    corpus = write_corpus(folder / "corpus")
    own = (f"data.path={corpus}", f"train.run_dir={folder / name}")
    return build(_RECIPE, (*own, *overrides))


def write_corpus(folder: Path) -> Path:
    """A few files of words in random order."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(6):
        draw = random.Random(number)
        text = " ".join(draw.choice(WORDS) for _ in range(120))
        (folder / f"{number}.txt").write_text(text + "\n", encoding="utf-8")
    return folder

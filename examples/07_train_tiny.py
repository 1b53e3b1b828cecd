"""A tiny mixture of experts, trained from Python on this interpreter's own library, then resumed.

    python examples/07_train_tiny.py

The same recipe in a file would be `weft train tiny.toml`: two doors to one room.
"""

import tempfile
from pathlib import Path

import weft
from weft.config.load import build
from weft.config.run import RunConfig
from weft.telemetry import metrics

RECIPE = {
    "name": "tiny",
    "model": {"preset": "tiny-mixtral"},
    "data": {"source": "stdlib", "sequence": 64, "validation_bytes": 4096},
    "optim": {"lr": 4e-3, "warmup_steps": 10},
    "train": {
        "steps": 120,
        "global_batch": 8,
        "micro_batch": 8,
        "eval_every": 60,
        "checkpoint_every": 60,
        "log_every": 20,
        "sample_bytes": 120,
        "threads": 1,
        "device": "cpu",
    },
}
WIDTH = 60


def recipe(folder: Path, steps: int) -> RunConfig:
    """The recipe, so many steps long, its run in this folder."""
    return build(RECIPE, [f"train.run_dir={folder}", f"train.steps={steps}"])


def curve(records: list[dict], every: int) -> str:
    """The loss as bars, one line every few steps."""
    losses = {r["step"]: r["loss"] for r in records if "loss" in r}
    top = max(losses.values())
    return "\n".join(
        f"  {step:>3}  {loss:.3f}  {'#' * round(WIDTH * loss / top)}"
        for step, loss in losses.items()
        if step == 1 or step % every == 0
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        print("---- 120 steps\n")
        weft.train(recipe(folder, 120))
        print("\n---- the same run, 60 steps longer: it goes on from its checkpoint\n")
        weft.train(recipe(folder, 180))
        records = metrics.read(folder / metrics.FILE)
    print("\n---- nats a byte, from the metrics of the run; 5.549 is knowing nothing\n")
    print(curve(records, every=20))
    loads = [r for r in records if "loss" in r][-1]
    print(
        f"\nthe busiest expert got {loads['expert_load_max']:.2f} times an even share of the last "
        f"step, the idlest {loads['expert_load_min']:.2f}; {loads['dead_experts']} got nothing"
    )

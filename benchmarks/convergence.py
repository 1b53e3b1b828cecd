"""Does a compressed wire train the same model? One model, four wires, several seeds.

    python benchmarks/convergence.py OUT [--ranks 8] [--steps 2000] [--seeds 0 1 2] [--device auto]
                                         [--wires fp32 fp8 ...] [--plot FILE.png] [--keep FILE]

    fp32, bf16, bf16_ring    gradients between replicas, every expert on every rank
    fp8                      activations and their gradients on the way to experts and back, experts
                             spread over the ranks; gradients between replicas in FP32

A mixture of experts of 7 million parameters learns the source of Python's standard library byte by
byte. All data-parallel ranks live in this process (`stacked`), so that one GPU or one CPU is
enough, and every collective is really made: each rank has its own gradients, rounds them and sums
what arrives. Runs of one seed start from the same weights and see the same bytes.

OUT holds one file a run, `<wire>-<seed>.jsonl`: a line a step, at the end one with the validation
loss. A run that has its last line is not run again; another is begun anew. What the runs say
together is printed, and drawn with --plot.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from math import gcd
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import weft
from weft.bench.record import append
from weft.comm.mesh import Mesh
from weft.comm.transports.stacked import StackedWorld
from weft.compose.recipe import plan
from weft.config.compression import CROSSINGS
from weft.config.load import build as build_config
from weft.config.run import RunConfig
from weft.optim.lr import learning_rate
from weft.report.figure import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PNG_DPI,
    new_axes,
    new_figure,
    styled,
)
from weft.runtime.backends import bodies, choose, pick_device, prepare
from weft.runtime.executor import run_together
from weft.runtime.lanes import HostLanes
from weft.runtime.stage import Rates, Stage, build, evaluator
from weft.runtime.state import initialise, precision
from weft.trainer.feed import Feed, open_feed

RECIPE: Mapping[str, Any] = {
    "name": "convergence",
    "model": {
        "family": "mixtral",
        "vocab": 257,
        "hidden": 256,
        "layers": 4,
        "heads": 8,
        "kv_heads": 4,
        "head_dim": 32,
        "ffn_hidden": 256,
        "experts": 8,
        "top_k": 2,
        "init_std": 0.04,  # about 1 / sqrt(2 hidden), as in recipes/quickstart.toml
    },
    "data": {"source": "stdlib", "sequence": 256},
    "optim": {"lr": 2e-3, "warmup_steps": 100},
    "train": {"micro_batch": 1, "eval_every": 1, "checkpoint_every": 0},
}


class Wire(StrEnum):
    """What travels in how many bits."""

    FP32 = "fp32"
    BF16 = "bf16"
    BF16_RING = "bf16_ring"
    FP8 = "fp8"


COLORS = {Wire.FP32: GREEN, Wire.BF16: BLUE, Wire.BF16_RING: ORANGE, Wire.FP8: INK}
LATE = 10  # the last tenth of a run is what its curve has come to
WINDOW = 50  # steps: short of it the batches differ more than the wires
Losses = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run: its wire, its seed, where it is written."""

    wire: Wire
    seed: int
    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """What a finished run left: the loss of each step, the validation loss after the last."""

    losses: tuple[float, ...]
    validation: float


def main() -> None:
    """Does the runs that are missing, and says what all of them come to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--wires", nargs="+", type=Wire, default=list(Wire))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--keep", type=Path, help="appends a short record of each run")
    parser.add_argument("--set", action="append", default=[], help="any value of the recipe")
    options = parser.parse_args()
    device = pick_device(options.device, 0)
    prepare(device, threads=None, neighbours=1)
    options.out.mkdir(parents=True, exist_ok=True)
    runs = [
        Run(wire=wire, seed=seed, path=options.out / f"{wire.value}-{seed}.jsonl")
        for seed in options.seeds
        for wire in options.wires
    ]
    for run in runs:
        if finished(run) is None:
            train(run, recipe(options, run), device)
    curves = {run: found for run in runs if (found := finished(run))}
    print("\n".join(table(curves)))
    if options.plot:
        draw(curves, options.plot)
    if options.keep:
        keep(curves, options.keep)


def recipe(options: argparse.Namespace, run: Run) -> RunConfig:
    """The recipe of a run: one micro-batch a rank."""
    sets = (
        f"parallel.dp={options.ranks}",
        *compressed(run.wire, options.ranks),
        f"train.global_batch={options.ranks}",
        f"train.steps={options.steps}",
        f"train.seed={run.seed}",
        f"train.precision={options.precision}",
        f"optim.warmup_steps={min(RECIPE['optim']['warmup_steps'], options.steps)}",
        *options.set,
    )
    return build_config(RECIPE, sets)


def compressed(wire: Wire, ranks: int) -> tuple[str, ...]:
    """What a wire changes of the recipe."""
    if wire is not Wire.FP8:
        return (f"compression.gradients={wire.value}",)
    spread = gcd(ranks, RECIPE["model"]["experts"])
    return (f"parallel.ep={spread}", *(f"compression.{name}=fp8" for name in CROSSINGS))


# ---- running -------------------------------------------------------------------------------------


def train(run: Run, config: RunConfig, device: torch.device) -> None:
    """Trains all ranks in this process and writes a line a step."""
    feed = open_feed(config)
    world = StackedWorld(Mesh(dp=config.parallel.dp, ep=config.parallel.ep))
    stages = [stage(config, rank, world, device) for rank in range(config.parallel.dp)]
    with run.path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(header(run, config, stages[0], device)) + "\n")
        for step in range(config.train.steps):
            stats = train_step(stages, world, feed, config, step)
            line = {"step": step + 1, "loss": float(stats[0]), "norm2": float(stats[3])}
            file.write(json.dumps(line) + "\n")
            if step % 100 == 0:
                file.flush()
                print(f"{run.path.stem}: step {step + 1} loss {line['loss']:.4f}", flush=True)
        line = {"validation": validate(stages, world, feed, config, device)}
        file.write(json.dumps(line) + "\n")
    print(f"{run.path.stem}: validation loss {line['validation']:.4f}", flush=True)


def stage(config: RunConfig, rank: int, world: StackedWorld, device: torch.device) -> Stage:
    """One rank with its first weights."""
    made = build(
        plan(config, rank),
        bodies=bodies(choose(device, precision(config.train.precision).act)),
        transport=world.transport(rank),
        device=device,
        lanes=HostLanes(),
    )
    initialise(made.state, seed=config.train.seed)
    return made


def train_step(
    stages: Sequence[Stage], world: StackedWorld, feed: Feed, config: RunConfig, step: int
) -> torch.Tensor:
    """One step of every rank; the statistics, summed over all."""
    optim, device = config.optim, stages[0].state.stats.device
    lr = learning_rate(
        step,
        peak=optim.lr,
        floor_ratio=optim.min_lr_ratio,
        warmup=optim.warmup_steps,
        total=config.train.steps,
    )
    environments = [
        made.environment(
            feed.load(made.plan, step, device),
            divisor=float(feed.training.divisor(step)),
            rates=Rates(lr=lr, weight_decay=optim.weight_decay, step=step + 1),
        )
        for made in stages
    ]
    run_together([made.bound for made in stages], environments, world.pending)
    return environments[0]["stats"]


def validate(
    stages: Sequence[Stage],
    world: StackedWorld,
    feed: Feed,
    config: RunConfig,
    device: torch.device,
) -> float:
    """The validation loss: every rank its share, all of them together."""
    table = bodies(choose(device, precision(config.train.precision).act))
    evaluators = [evaluator(s, bodies=table, device=device, lanes=HostLanes()) for s in stages]
    shares = [feed.load_validation(s.plan, device) for s in stages]
    divisor = float(feed.validation.divisor)
    for batches in zip(*shares, strict=True):
        environments = [{"divisor": divisor, **batch.environment(0)} for batch in batches]
        run_together([one.bound for one in evaluators], environments, world.pending)
    return sum(float(one.stats[0]) for one in evaluators)


def header(run: Run, config: RunConfig, made: Stage, device: torch.device) -> dict[str, Any]:
    """What a run was, as its first line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "wire": run.wire.value,
        "seed": run.seed,
        "parameters": sum(p.numel for p in made.step.parameters),
        "device": name,
        "torch": torch.__version__,
        "weft": weft.__version__,
        "recipe": config.model_dump(mode="json"),
    }


# ---- reading -------------------------------------------------------------------------------------


def finished(run: Run) -> Curve | None:
    """The curve of a run that reached its end, if it did."""
    if not run.path.exists():
        return None
    lines = [json.loads(line) for line in run.path.read_text(encoding="utf-8").splitlines()]
    if not lines or "validation" not in lines[-1]:
        return None
    losses = tuple(line["loss"] for line in lines if "loss" in line)
    return Curve(losses=losses, validation=lines[-1]["validation"])


def table(curves: Mapping[Run, Curve]) -> Iterator[str]:
    """Losses of each run; how far wires are from FP32, beside how far seeds are from each other."""
    yield "| wire | seed | loss, last tenth | validation |"
    yield "|---|---|---|---|"
    for run, found in sorted(curves.items(), key=lambda item: (item[0].wire, item[0].seed)):
        yield f"| {run.wire.value} | {run.seed} | {late(found):.5f} | {found.validation:.5f} |"
    yield ""
    yield f"| compared | mean difference of a step | of {WINDOW} steps | bias, last half |"
    yield "|---|---|---|---|"
    for name, pairs in compared(curves).items():
        step, window = (mean(gap(a, b, width) for a, b in pairs) for width in (1, WINDOW))
        yield f"| {name} | {step:.5f} | {window:.5f} | {biases(pairs)} |"


Pair = tuple[Losses, Losses]


def compared(curves: Mapping[Run, Curve]) -> Mapping[str, Sequence[Pair]]:
    """Each wire against FP32 of the same seed, and FP32 of one seed against that of another."""
    losses = {(run.wire, run.seed): np.array(found.losses) for run, found in curves.items()}
    plain = {seed: found for (wire, seed), found in losses.items() if wire is Wire.FP32}
    wires = {
        wire.value: [(losses[wire, s], plain[s]) for s in plain if (wire, s) in losses]
        for wire in Wire
        if wire is not Wire.FP32
    }
    return {**{n: p for n, p in wires.items() if p}, "seeds": [*combinations(plain.values(), 2)]}


def windowed(losses: Losses, width: int) -> Losses:
    """The mean loss of so many steps in a row."""
    return losses[: len(losses) // width * width].reshape(-1, width).mean(axis=1)


def gap(a: Losses, b: Losses, width: int) -> float:
    """How far two curves are apart, on average over the run."""
    return float(np.abs(windowed(a, width) - windowed(b, width)).mean())


def biases(pairs: Sequence[Pair]) -> str:
    """The mean difference of the last half, as a share of the loss, of each pair."""
    halves = [(a[len(a) // 2 :].mean(), b[len(b) // 2 :].mean()) for a, b in pairs]
    return ", ".join(f"{100 * (a - b) / b:+.2f} %" for a, b in halves)


def late(found: Curve) -> float:
    """The mean loss of the last tenth of a run."""
    return mean(found.losses[-max(1, len(found.losses) // LATE) :])


def draw(curves: Mapping[Run, Curve], path: Path) -> None:
    """How far each wire is from FP32, the mean over seeds, on a band as wide as seeds differ."""
    found = compared(curves)
    steps = windowed(np.arange(1.0, 1.0 + len(next(iter(curves.values())).losses)), WINDOW)
    apart = [np.abs(windowed(a, WINDOW) - windowed(b, WINDOW)) for a, b in found["seeds"]]
    with styled():
        figure = new_figure()
        axes = new_axes(figure, unit=f"loss less that of FP32, nats a byte, by {WINDOW} steps")
        band = np.mean(apart, axis=0)
        axes.fill_between(steps, -band, band, color=FAINT, label="between seeds", linewidth=0)
        for wire in (wire for wire in Wire if wire.value in found):
            gaps = [windowed(a, WINDOW) - windowed(b, WINDOW) for a, b in found[wire.value]]
            axes.plot(steps, np.mean(gaps, axis=0), color=COLORS[wire], label=wire.value)
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=8, ncols=2)
        figure.savefig(path, dpi=PNG_DPI)


def keep(curves: Mapping[Run, Curve], file: Path) -> None:
    """Appends a record a run: what it was, and its loss by windows."""
    for run, found in curves.items():
        with run.path.open(encoding="utf-8") as lines:
            said = json.loads(next(lines))
        losses = windowed(np.array(found.losses), WINDOW).round(5).tolist()
        append(file, {**said, "window": WINDOW, "losses": losses, "validation": found.validation})


if __name__ == "__main__":
    main()

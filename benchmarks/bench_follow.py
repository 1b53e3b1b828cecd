"""Does a model learn in each layout as it does on one device? Its loss, step by step.

    python benchmarks/bench_follow.py [--steps 200] [--out FILE] [--only WORD]* [key=value ...]

A small model learns real text. The yardstick is one device with its micro-batch halved: sums of
gradients in another order, and the balance loss, which is that of a micro-batch, of other halves;
at least it is what one rounding of every token's loss comes to in their mean, since halving rounds
nothing anew in a forward and layouts do. A layout follows if it is nowhere farther from one device
than TWICE that, neither in the first EARLY steps, before differences grow, nor later. The control,
a layout in which one rank reads a step ahead of the other, must not: else nothing has been shown,
and the run fails. Settings given last go to every run.

First each of two processes trains by itself, one of them by the yardstick; then both go through the
layouts, one after the other. A line is printed every few steps, and a record with the loss of every
step is left as each run ends. What a step costs here is the host: some 230 tasks and 60 collectives
where two micro-batches of two layers are cut over two ranks.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from bench_layouts import LAYOUTS, chosen, visit

from weft.bench.record import append, entry
from weft.bench.rig import Rig, assemble
from weft.bench.world import Wires, fresh, start
from weft.config.load import build, dump
from weft.config.run import RunConfig
from weft.errors import VerificationError
from weft.optim.lr import learning_rate
from weft.runtime.stage import Rates
from weft.runtime.state import precision
from weft.trainer.feed import Feed, open_feed
from weft.trainer.session import Place

ONE, HALVED = "one device", "one device, halved"
CONTROL, CONTROLLED = "control: a rank a step ahead", "dp2, gradients in FP32"
RECIPE: Mapping[str, Any] = {
    "name": "follow",
    "model": {
        "family": "qwen3_moe", "vocab": 512, "hidden": 1024, "layers": 2, "heads": 8, "kv_heads": 4,
        "head_dim": 128, "ffn_hidden": 1024, "experts": 16, "top_k": 4,
    },
    "data": {"source": "stdlib", "sequence": 1024},
    "optim": {"lr": 3e-4, "warmup_steps": 10},
    "train": {
        "global_batch": 8, "micro_batch": 4, "steps": 200, "precision": "bfloat16",
        "eval_every": 200, "checkpoint_every": 0, "device": "cuda",
    },
}  # fmt: skip
TWICE = 2.0  # two runs that each are a yardstick from a third may be that far apart
EARLY = 10  # steps, as long as the learning rate warms up
LEAST = 1e-12  # in place of no difference at all
TOLD = 50  # steps between two lines

Losses = list[float]
Say = Callable[[int, torch.Tensor], None]  # step, loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What both processes do: layouts by name, settings for all, steps, where results go."""

    layouts: Mapping[str, tuple[str, ...]]
    settings: tuple[str, ...]
    out: Path | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=RECIPE["train"]["steps"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", action="append", help="layouts whose names have a word")
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    steps = (f"train.steps={options.steps}", f"optim.warmup_steps={min(10, options.steps)}")
    work = Work(
        layouts=chosen(options.only or []), settings=(*options.settings, *steps), out=options.out
    )
    start(process, work, world=2, device=build(RECIPE, work.settings).train.device)


def process(place: Place, work: Work) -> None:
    """One of two processes: alone first, then every layout."""
    runs: list[Losses] = [[], []]
    dist.all_gather_object(runs, alone(place, work))
    (one, halved), feed = runs, open_feed(recipe(work, ()))
    yardstick = yardstick_of(apart(halved, one), recipe(work, ()))
    for name, losses in zip((ONE, HALVED), runs, strict=True):
        tell(place, work, name, losses, apart(losses, one))

    def run(name: str, rig: Rig, ahead: int = 0) -> bool:
        losses = train(rig, feed, told(place, name), ahead=ahead)
        found = apart(losses, one)
        found["yardsticks"] = far(found, yardstick)
        found["times_halved"] = found["largest"] / max(apart(halved, one)["largest"], LEAST)
        tell(place, work, name, losses, found)
        return found["yardsticks"] <= TWICE

    def sabotaged(name: str, rig: Rig) -> None:
        if run(name, rig, ahead=place.rank):
            raise not_told_apart(name)

    visit(place, work.layouts, lambda sets: recipe(work, sets), run)
    visit(place, {CONTROL: LAYOUTS[CONTROLLED]}, lambda sets: recipe(work, sets), sabotaged)


def recipe(work: Work, sets: Sequence[str]) -> RunConfig:
    """The recipe of a layout."""
    return build(RECIPE, (*work.settings, *sets))


def alone(place: Place, work: Work) -> Losses:
    """The losses of this rank by itself, of the second one with its micro-batch halved."""
    config = recipe(work, ())
    if place.rank:
        config = recipe(work, (f"train.micro_batch={config.train.micro_batch // 2}",))
    own = replace(place, rank=0, world=1)
    rig = assemble(config, own, Wires(own).of(config))
    losses = train(rig, open_feed(config), told(place, (ONE, HALVED)[place.rank]))
    del rig
    fresh(place.device)
    return losses


def told(place: Place, name: str) -> Say:
    """Prints how far a run is, on the first rank."""
    begun = time.perf_counter()

    def tell_step(step: int, loss: torch.Tensor) -> None:
        if place.rank == 0 and (step == 1 or step % TOLD == 0):  # the first compiles kernels
            seconds = time.perf_counter() - begun
            print(f"    {name}: step {step}, loss {float(loss):.4f}, {seconds:.1f} s", flush=True)

    return tell_step


def train(rig: Rig, feed: Feed, say: Say, *, ahead: int = 0) -> Losses:
    """The loss of each step on real text that may be ahead, read when all are done."""
    optim, made, steps = rig.config.optim, rig.stage, rig.config.train.steps
    found: list[torch.Tensor] = []
    for step in range(steps):
        lr = learning_rate(
            step,
            peak=optim.lr,
            floor_ratio=optim.min_lr_ratio,
            warmup=optim.warmup_steps,
            total=steps,
        )
        rates = Rates(lr=lr, weight_decay=optim.weight_decay, step=step + 1)
        batches = feed.load(made.plan, step + ahead, rig.place.device)
        divisor = float(feed.training.divisor(step))
        found.append(made.train(batches, divisor=divisor, rates=rates)["stats"][0].clone())
        say(step + 1, found[-1])
    return [float(loss) for loss in found]


def apart(losses: Sequence[float], one: Sequence[float]) -> dict[str, float]:
    """How far a run is from that of one device."""
    gaps = np.abs(np.array(losses) - np.array(one))  # its largest is NaN where one is
    return {
        "early": float(gaps[:EARLY].max()),
        "largest": float(gaps.max()),
        "mean": float(gaps.mean()),
        "mean_last_tenth": float(gaps[-max(1, len(gaps) // 10) :].mean()),
        "first": losses[0],
        "last": losses[-1],
    }


def yardstick_of(halved: Mapping[str, float], config: RunConfig) -> dict[str, float]:
    """How far runs of the same mathematics may be apart, early and over all."""
    tokens = config.train.global_batch * config.data.sequence
    rounding = torch.finfo(precision(config.train.precision).act).eps * halved["first"]
    return {part: max(halved[part], rounding / tokens**0.5) for part in ("early", "largest")}


def far(found: Mapping[str, float], yardstick: Mapping[str, float]) -> float:
    """How many yardsticks a run is from one device, early or over all, whichever is more."""
    return float(np.max([found[part] / length for part, length in yardstick.items()]))


def not_told_apart(control: str) -> VerificationError:
    """What a run ends with whose control follows."""
    return VerificationError(
        f"{control}: found that it follows, expected that it does not: such a yardstick shows "
        "nothing; try fewer steps or a lower optim.lr"
    )


def verdict(found: Mapping[str, float]) -> str:
    """Whether a run follows; nothing of the runs that the others are held to."""
    if "yardsticks" not in found:
        return ""
    times, halved = found["yardsticks"], found["times_halved"]
    follows = "follows" if times <= TWICE else "DOES NOT FOLLOW"
    return f"{times:.2f} yardsticks, {halved:.2f} times the halved one: {follows}"


def tell(place: Place, work: Work, name: str, losses: Losses, found: Mapping[str, float]) -> None:
    """A line on the screen and a record in the file, of the first rank."""
    if place.rank:
        return
    print(
        f"{name:<32} loss {found['first']:.4f} to {found['last']:.4f}, differences: largest "
        f"{found['largest']:.1e}, early {found['early']:.1e}, mean {found['mean']:.1e}  "
        f"{verdict(found)}",
        flush=True,
    )
    if work.out:
        config = recipe(work, work.layouts.get(name, ()))
        made = {"what": "follows", "layout": name, "recipe": config.name, "config": dump(config)}
        figures = {**found, "verdict": verdict(found), "losses": losses}
        append(work.out, entry("follow", place.device, {**made, **figures}))


if __name__ == "__main__":
    main()

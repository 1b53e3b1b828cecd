"""Does cutting a product and its collective into chunks pay on these devices?

    python benchmarks/bench_split.py RECIPE [key.path=value ...] [--rounds 12] [--json FILE]

All variants are bound to one state and take turns, in another order each round; the learning rate
is zero, so that every step has the same work. Before anything is timed their losses and gradient
norms must agree: bit by bit with the same chunks in serial order, up to rounding with the uncut
program.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from weft.bench import record
from weft.bench.rig import Rig, rigged
from weft.bench.spread import Spread, spread
from weft.compose.plan import LOSS, NORM2
from weft.compose.step import training_step
from weft.config.load import dump, load
from weft.config.run import RunConfig
from weft.graph.opset import Tolerance
from weft.runtime.backends import pick_device
from weft.runtime.executor import bind
from weft.runtime.stage import Rates, lanes_of
from weft.runtime.state import precision
from weft.runtime.wire import collective_bodies
from weft.schedule.decompose import BACKWARD, FORWARD
from weft.testing.tolerance import gradient_bound
from weft.trainer.record import Stopwatch
from weft.trainer.session import Place

WHOLE = "whole"
VARIANTS: Mapping[str, Mapping[str, object]] = {
    WHOLE: {},
    "whole, again": {},
    "attention": {"split": ("qkv", "out")},
    "dispatch": {"split": ("dispatch",)},
    "combine": {"split": ("combine",)},
    "forward": {"split": tuple(FORWARD)},
    "forward in 4": {"split": tuple(FORWARD), "chunks": 4},
    "both": {"split": (*FORWARD, *BACKWARD)},
}
SERIAL = ("forward in 4", "both")  # between them they have every pair
WARM_UP = 2  # behind the step whose sums are compared


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What one variant took, and its sums."""

    step_ms: Spread
    ratio: Spread  # to the whole program in the same round
    loss: float
    norm2: float


def main() -> None:
    """Measures a recipe with as many processes as its layout has ranks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    config = load(options.recipe, options.overrides)
    with tempfile.TemporaryDirectory() as folder:
        given = (config, f"file://{folder}/meeting", options.rounds, options.json)
        spawn(measure, given, nprocs=config.parallel.ranks)


def measure(rank: int, config: RunConfig, meeting: str, rounds: int, file: Path | None) -> None:
    """One rank; the first prints and appends."""
    device = pick_device(config.train.device, rank)
    world = config.parallel.ranks
    place = Place(rank=rank, world=world, device=device, meeting=meeting, neighbours=world)
    with rigged(config, place) as rig:
        variants = {name: cut(rig, changes) for name, changes in VARIANTS.items()}
        sums = {name: statistics(each) for name, each in variants.items()}
        agree(rig, sums)
        found = turns(variants, sums, rounds)
    if rank:
        return
    print(f"{config.name}: {rig.plan.layout.name()}, {rig.tokens} tokens a step, {config.overlap}")
    for name, each in found.items():
        ratio, time = each.ratio.text(3), each.step_ms.text()
        print(f"{name:<14} {time} ms  x {ratio}")
    if file is not None:
        for name, each in found.items():
            figures = {"step_ms": each.step_ms.record(), "ratio": each.ratio.record()}
            figures |= {"loss": each.loss, "norm2": each.norm2}
            recipe = {"recipe": config.name, "config": dump(config), "variant": name}
            record.append(file, record.entry("split", device, {**recipe, **figures}))


def cut(rig: Rig, changes: Mapping[str, object], *, order: str = "") -> Rig:
    """The rig with another step over the same state."""
    plan = replace(rig.plan, **changes, order=order or rig.plan.order)
    step = training_step(plan)
    bound = bind(
        step,
        bodies={**rig.bodies, **collective_bodies(rig.transport)},
        statics=rig.stage.state.statics,
        lanes=lanes_of(rig.place.device, rig.transport),
    )
    return replace(rig, plan=plan, stage=replace(rig.stage, step=step, bound=bound))


def run(rig: Rig) -> Tensor:
    """One step that leaves every weight as it is; its statistics."""
    rates = Rates(lr=0.0, weight_decay=0.0, step=1)
    environment = rig.stage.environment(rig.batches, divisor=float(rig.tokens), rates=rates)
    return rig.stage.bound.run(environment)["stats"]


def statistics(rig: Rig) -> Tensor:
    return run(rig).clone()


def agree(rig: Rig, sums: Mapping[str, Tensor]) -> None:
    """Ends the run if a variant computes something else."""
    act = precision(rig.plan.precision).act
    bound = gradient_bound(Tolerance.ATTENTION, act, rig.plan.local_tokens)
    for name in SERIAL:
        serial = statistics(cut(rig, VARIANTS[name], order="serial"))
        if not torch.equal(serial, sums[name]):
            sys.exit(f"{name}: the bits of the serial order differ")
    for name in VARIANTS:
        for place in (LOSS, NORM2):
            ours, theirs = float(sums[name][place]), float(sums[WHOLE][place])
            if not abs(ours - theirs) <= bound * abs(theirs):
                sys.exit(f"{name}: found {ours}, expected {theirs} within {bound:.2g}")


def turns(variants: Mapping[str, Rig], sums: Mapping[str, Tensor], rounds: int) -> dict[str, Found]:
    """Every variant once a round."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    chance = random.Random(0)  # every rank draws the same turns
    for each in variants.values():
        for _ in range(WARM_UP):
            run(each)
    for _ in range(rounds):
        order = list(variants)
        chance.shuffle(order)
        watches: dict[str, Stopwatch] = {}
        for name in order:
            rig = variants[name]
            rig.transport.barrier()
            watches[name] = Stopwatch(rig.place.device)
            run(rig)
            watches[name].stop()
        for name, watch in watches.items():
            times[name].append(watch.milliseconds())
    return {
        name: Found(
            step_ms=spread(times[name]),
            ratio=spread([a / b for a, b in zip(times[name], times[WHOLE], strict=True)]),
            loss=float(sums[name][LOSS]),
            norm2=float(sums[name][NORM2]),
        )
        for name in variants
    }


if __name__ == "__main__":
    main()

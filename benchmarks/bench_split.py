"""Does cutting a product and its collective into chunks pay on these devices?

    python benchmarks/bench_split.py RECIPE [key.path=value ...] [--rounds 12] [--json FILE]

All variants are bound to one state and take turns, in another order each round; the learning rate
is zero, so that every step has the same work. Before anything is timed their losses and gradient
norms must agree: bit by bit with the same chunks in serial order, up to rounding with the uncut
program. Each round leaves a record of what every variant took, the last of what they come to.
"""

import argparse
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from weft.bench import record
from weft.bench.rig import Rig, assemble
from weft.bench.spread import Spread, spread
from weft.bench.world import Wires, start
from weft.compose.plan import LOSS, NORM2
from weft.compose.step import training_step
from weft.config.load import dump, load
from weft.config.run import RunConfig
from weft.errors import VerificationError
from weft.graph.opset import Tolerance
from weft.runtime.state import precision
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Errand:
    """What every rank is sent for."""

    config: RunConfig
    rounds: int
    file: Path | None

    def append(self, rig: Rig, figures: Mapping[str, object]) -> None:
        """The first rank's record of what has been found so far."""
        if rig.place.rank == 0 and self.file is not None:
            recipe = {"recipe": self.config.name, "config": dump(self.config)}
            line = record.entry("split", rig.place.device, {**recipe, **figures})
            record.append(self.file, line)


def main() -> None:
    """Measures a recipe with as many processes as its layout has ranks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    config = load(options.recipe, options.overrides)
    errand = Errand(config=config, rounds=options.rounds, file=options.json)
    start(measure, errand, world=config.parallel.ranks, device=config.train.device)


def measure(place: Place, errand: Errand) -> None:
    """One rank; the first prints and appends."""
    wires = Wires(place)
    rig = assemble(errand.config, place, wires.of(errand.config))
    variants = {name: cut(rig, changes) for name, changes in VARIANTS.items()}
    sums = {name: run(each).clone() for name, each in variants.items()}
    agree(rig, sums)
    found = turns(rig, variants, sums, errand)
    for name, each in found.items():
        figures = {"step_ms": each.step_ms.record(), "ratio": each.ratio.record()}
        errand.append(rig, {"variant": name, **figures, "loss": each.loss, "norm2": each.norm2})
    if place.rank == 0:
        print("\n".join(lines(rig, found)), flush=True)
    wires.close()


def lines(rig: Rig, found: Mapping[str, Found]) -> Iterator[str]:
    """The table of all variants."""
    layout, overlap = rig.plan.layout.name(), rig.config.overlap
    yield f"{rig.config.name}: {layout}, {rig.tokens} tokens a step, {overlap}"
    for name, each in found.items():
        yield f"{name:<14} {each.step_ms.text()} ms  x {each.ratio.text(3)}"


def cut(rig: Rig, changes: Mapping[str, object], *, order: str = "") -> Rig:
    """The rig with another step over the same state."""
    return rig.with_step(training_step(replace(rig.plan, **changes, order=order or rig.plan.order)))


def run(rig: Rig) -> Tensor:
    """One step that leaves every weight as it is; its statistics."""
    return rig.stage.bound.run(rig.environment())["stats"]


def agree(rig: Rig, sums: Mapping[str, Tensor]) -> None:
    """Returns when every variant computes the same.

    Raises:
        VerificationError: one of them does not.
    """
    act = precision(rig.plan.precision).act
    bound = gradient_bound(Tolerance.ATTENTION, act, rig.plan.local_tokens)
    for name in SERIAL:
        serial = run(cut(rig, VARIANTS[name], order="serial"))
        if not torch.equal(serial, sums[name]):
            raise VerificationError(
                f"{name}: loss {float(sums[name][LOSS])}; expected the bits of its serial order, "
                f"{float(serial[LOSS])}; try weft verify, which names the tensor"
            )
    for name in VARIANTS:
        for place in (LOSS, NORM2):
            ours, theirs = float(sums[name][place]), float(sums[WHOLE][place])
            if not abs(ours - theirs) <= bound * abs(theirs):
                raise VerificationError(
                    f"{name}: found {ours}, expected {theirs} within {bound:.2g} of it; try weft "
                    "verify, which names the tensor"
                )


def turns(
    rig: Rig, variants: Mapping[str, Rig], sums: Mapping[str, Tensor], errand: Errand
) -> dict[str, Found]:
    """Every variant once a round."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    chance = random.Random(0)  # every rank draws the same turns
    for each in variants.values():
        for _ in range(WARM_UP):
            run(each)
    for round_ in range(errand.rounds):
        order = list(variants)
        chance.shuffle(order)
        watches: dict[str, Stopwatch] = {}
        for name in order:
            rig.transport.barrier()
            watches[name] = Stopwatch(rig.place.device)
            run(variants[name])
            watches[name].stop()
        own = {name: watch.milliseconds() for name, watch in watches.items()}
        errand.append(rig, {"round": round_, "times_ms": own})
        for name, taken in own.items():
            times[name].append(taken)
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

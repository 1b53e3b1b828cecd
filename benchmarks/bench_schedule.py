"""What each overlap is worth: one step in several orders over the same state, in turns.

    python benchmarks/bench_schedule.py FILE [--nproc 2] [--model Q|M]* [--machine MACHINE.toml]
                                        [--rounds 6] [key=value ...]

    serial        one task after the other
    paper         the paper's list for a layer, by hand
    overlapped    collectives as soon and waits as late as they can be
    auto          found by search, at the prices of the machine
    auto, again   the same once more: what two identical runs differ by
    across        auto, with the next layer's first collective in front
    merged        the same, a micro-batch's backward beside the next one's forward
    auto less X   auto, but compute waits for each collective of X where it is posted

Before anything is timed all must find the sums of the serial one, bit by bit. Every round runs all
of them in another order, and leaves a record of what each took. Milliseconds
of a step (median, least, 90th percentile) and of exposed communication, which is how long compute
stands still in waits. Settings given last go to every model's recipe.
"""

import argparse
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from weft.bench.record import append, entry
from weft.bench.rig import Rig, assemble
from weft.bench.spread import spread
from weft.bench.tap import Tap
from weft.bench.world import Wires, fresh, start
from weft.compose.order import Order, named_order
from weft.compose.plan import LOSS, NORM2, Plan
from weft.compose.price import Pricing
from weft.compose.step import Step, training_step
from weft.config.load import build, dump
from weft.config.run import RunConfig
from weft.errors import VerificationError
from weft.planner.cost import pricing, rates
from weft.planner.machine import machine
from weft.schedule.action import Action, Free, Ordered, Post, Wait, is_open, with_frees
from weft.schedule.check import check
from weft.trainer.record import Stopwatch
from weft.trainer.session import Place

STEPS = 3  # of each variant in a round the first step is not timed
MODELS: Mapping[str, Mapping[str, Any]] = {
    "Q": {"preset": "qwen3-30b-a3b", "layers": 4, "vocab": 32768},
    "M": {"preset": "mixtral-8x7b", "layers": 2, "vocab": 32768},
}
PAYLOADS: Mapping[str, frozenset[str]] = {
    "dispatch": frozenset({"tokens", "rows", "weights", "experts"}),
    "combine": frozenset({"outputs"}),
    "attention": frozenset({"qkv", "attention"}),
}


def recipe(model: str, world: int, settings: Sequence[str]) -> RunConfig:
    """Two micro-batches of a few layers, all ranks in one group of sp and ep."""
    tree = {
        "name": f"schedule-{model}",
        "model": dict(MODELS[model]),
        "parallel": {"sp": world, "ep": world, "dispatch": "all_gather"},
        "data": {"source": "stdlib", "sequence": 4096},
        "optim": {"lr": 1e-4, "warmup_steps": 0},
        "train": {
            "steps": 1, "global_batch": 8, "micro_batch": 4, "precision": "bfloat16",
            "eval_every": 1, "checkpoint_every": 0, "device": "cuda",
        },
    }  # fmt: skip
    return build(tree, settings)


# ---- orders --------------------------------------------------------------------------------------


def variants(plan: Plan, prices: Pricing) -> Iterator[tuple[str, Step]]:
    """Each order by its name."""

    def named(order: str, **changes: Any) -> Step:
        made = replace(plan, order=order, **changes)
        return training_step(made, named_order(made, prices))

    for order in ("serial", "paper", "overlapped"):
        yield order, named(order)
    auto = named("auto")
    yield "auto", auto
    yield "auto, again", auto
    yield "across", named("auto", across=True)
    yield "merged", named("auto", across=True, merge=True)
    ready: Order = lambda program: auto.templates[program.name]  # noqa: E731 - searched once
    for name, labels in PAYLOADS.items():
        yield f"auto less {name}", training_step(replace(plan, order="auto"), less(ready, labels))
    # in a serial plan a reduction is one segment, which nothing else runs beside
    alone = named_order(replace(plan, order="auto"), prices)
    yield "auto less gradients", training_step(replace(plan, order="serial"), alone)


def less(order: Order, labels: frozenset[str]) -> Order:
    """The order with every collective of these payloads waited for where it is posted."""

    def made(program: Any) -> Ordered:
        ordered = order(program)
        at_once = {
            action.task.name
            for action in ordered.actions
            if isinstance(action, Post)
            and action.task.attributes.get("label") in labels
            and not is_open(ordered.program, action.task)
        }
        actions: list[Action] = []
        for action in ordered.actions:
            match action:
                case Free():
                    continue
                case Wait(task) if task.name in at_once:
                    continue
                case Post(task) if task.name in at_once:
                    actions += [action, Wait(task)]
                case _:
                    actions.append(action)
        again = with_frees(ordered.program, actions)
        return check(Ordered(program=ordered.program, actions=again))

    return made


# ---- measured ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Errand:
    """What the ranks are sent for."""

    models: tuple[str, ...]
    file: Path
    machine: str
    rounds: int
    settings: tuple[str, ...]


def run_rank(place: Place, errand: Errand) -> None:
    """Every model in turn; the first rank prints and appends."""
    known, wires = machine(errand.machine), Wires(place)
    for model in errand.models:
        config = recipe(model, place.world, errand.settings)
        prices = pricing(rates(known, attention=config.kernels.attention))
        measure(model, assemble(config, place, wires.of(config)), prices, errand)
        fresh(place.device)
    wires.close()


def measure(model: str, rig: Rig, prices: Pricing, errand: Errand) -> None:
    """Spread of the step, and exposed communication by axis, of every variant."""
    rigs = {name: rig.with_step(step) for name, step in variants(rig.plan, prices)}
    agree(rigs)
    times: dict[str, list[float]] = {name: [] for name in rigs}
    for round_ in range(errand.rounds):
        own = one_round(rigs, round_)
        tell(rig, errand, {"model": model, "round": round_, "times_ms": own})
        for name, taken in own.items():
            times[name] += taken
    found = {
        name: {"step_ms": spread(times[name]).record(), **exposed(each)}
        for name, each in rigs.items()
    }
    tell(rig, errand, {"model": model, "config": dump(rig.config), "variants": found})
    if rig.place.rank == 0:
        print("\n".join(lines(model, found)), flush=True)


def agree(rigs: Mapping[str, Rig]) -> None:
    """Returns when every variant finds the bits of the first.

    Raises:
        VerificationError: one of them does not.
    """
    sums = {
        name: rig.stage.bound.run(rig.environment())["stats"].clone() for name, rig in rigs.items()
    }
    first = next(iter(sums))
    for name, found in sums.items():
        if not torch.equal(found, sums[first]):
            raise VerificationError(
                f"{name}: loss {float(found[LOSS])}, squared gradient norm {float(found[NORM2])}; "
                f"expected the bits of {first}: {float(sums[first][LOSS])} and "
                f"{float(sums[first][NORM2])}; try weft verify, which names the tensor"
            )


def one_round(rigs: Mapping[str, Rig], number: int) -> dict[str, list[float]]:
    """Milliseconds of the steps of every variant, in an order of the round's own."""
    names = list(rigs)
    random.Random(number).shuffle(names)  # the same on every rank
    return {name: timed(rigs[name]) for name in names}


def timed(rig: Rig) -> list[float]:
    """Milliseconds of a variant's steps, but for the first."""
    rig.transport.barrier()
    watches: list[Stopwatch] = []
    for _ in range(STEPS):
        watch = Stopwatch(rig.place.device)
        rig.stage.bound.run(rig.environment())
        watch.stop()
        watches.append(watch)
    return [watch.milliseconds() for watch in watches[1:]]


def exposed(rig: Rig) -> dict[str, Any]:
    """How long compute stands still in the waits of a variant: in all, and by axis."""
    tap = Tap(rig.place.device)
    bound, rounds = rig.bound(lambda bodies: bodies, tap.lanes), list[dict[str, float]]()
    for _ in range(STEPS):
        rig.transport.barrier()
        bound.run(rig.environment())
        rounds.append(tap.milliseconds())
    total = statistics.median(sum(waits.values()) for waits in rounds[1:])
    return {"exposed_ms": total, "waits_ms": rounds[-1]}


def tell(rig: Rig, errand: Errand, figures: Mapping[str, Any]) -> None:
    """The first rank's record of what has been found so far."""
    if rig.place.rank == 0:
        append(errand.file, entry("schedule", rig.place.device, figures))


def lines(model: str, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The table of one model."""
    yield f"{model}: {'order':<22} {'step':>28} {'exposed':>10} {'share':>7} {'to serial':>10}"
    whole = found["serial"]["step_ms"]["median"]
    for name, row in found.items():
        step, exposed = row["step_ms"], row["exposed_ms"]
        text = f"{step['median']:.2f} ({step['min']:.2f} to {step['p90']:.2f}) ms"
        share, gain = exposed / step["median"], step["median"] / whole - 1
        yield f"   {name:<22} {text:>28} {exposed:>7.2f} ms {share:>7.1%} {gain:>+10.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--model", action="append", choices=list(MODELS))
    parser.add_argument("--machine", default="H200", help="whose prices the search goes by")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    errand = Errand(
        models=tuple(options.model or MODELS),
        file=options.file,
        machine=options.machine,
        rounds=options.rounds,
        settings=tuple(options.settings),
    )
    device = recipe(errand.models[0], options.nproc, errand.settings).train.device
    start(run_rank, errand, world=options.nproc, device=device)


if __name__ == "__main__":
    main()

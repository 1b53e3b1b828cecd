"""What each overlap is worth: one step in several orders over the same state, in turns.

    python benchmarks/bench_schedule.py FILE [--nproc 2] [--models Q M] [--machine MACHINE.toml]

    serial        one task after the other
    paper         the paper's list for a layer, by hand
    overlapped    collectives as soon and waits as late as they can be
    auto          found by search, at the prices of the machine
    auto, again   the same once more: what two identical runs differ by
    across        auto, with the next layer's first collective in front
    merged        the same, a micro-batch's backward beside the next one's forward
    auto less X   auto, but compute waits for each collective of X where it is posted

Every round runs all of them in another order. Milliseconds of a step (median, least, 90th
percentile) and of exposed communication, which is how long compute stands still in waits.
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from weft.bench.record import append, entry
from weft.bench.rig import Rig, assemble
from weft.bench.spread import spread
from weft.bench.tap import Tap
from weft.compose.order import Order, named_order
from weft.compose.plan import Plan
from weft.compose.price import Pricing
from weft.compose.step import Step, training_step
from weft.config.load import build, dump
from weft.config.run import RunConfig
from weft.planner.cost import pricing, rates
from weft.planner.machine import machine
from weft.runtime.backends import pick_device, prepare
from weft.runtime.executor import BoundStep, bind
from weft.runtime.lanes import CudaLanes
from weft.runtime.wire import collective_bodies
from weft.schedule.action import Action, Free, Ordered, Post, Wait, is_open, with_frees
from weft.schedule.check import check
from weft.trainer.record import Stopwatch
from weft.trainer.session import Place, join, open_transport

ROUNDS, STEPS = 6, 3  # of each variant in a round the first step is not timed
MODELS: Mapping[str, Mapping[str, Any]] = {
    "Q": {"preset": "qwen3-30b-a3b", "layers": 4, "vocab": 32768},
    "M": {"preset": "mixtral-8x7b", "layers": 2, "vocab": 32768},
}
PAYLOADS: Mapping[str, frozenset[str]] = {
    "dispatch": frozenset({"tokens", "rows", "weights", "experts"}),
    "combine": frozenset({"outputs"}),
    "attention": frozenset({"qkv", "attention"}),
}


def recipe(model: str, world: int) -> RunConfig:
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
    return build(tree)


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
    alone = replace(plan, order="serial")
    after = named_order(replace(plan, order="auto"), prices)
    yield (
        "auto less gradients",
        training_step(alone, lambda p: auto.templates.get(p.name) or after(p)),
    )


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


@dataclass(frozen=True, kw_only=True)
class Errand:
    """What the ranks are sent for."""

    models: tuple[str, ...]
    file: Path
    world: int
    machine: str


def run_rank(rank: int, meeting: str | None, errand: Errand) -> None:
    """Every model in turn; the first rank prints and appends."""
    device = pick_device("cuda", rank)
    prepare(device, threads=None, neighbours=errand.world)
    place = Place(rank=rank, world=errand.world, device=device, meeting=meeting)
    join(place)
    prices = pricing(rates(machine(errand.machine)))
    for model in errand.models:
        config = recipe(model, errand.world)
        transport = open_transport(config, place)
        found = measure(assemble(config, place, transport), prices)
        transport.close()
        torch.cuda.empty_cache()
        if rank == 0:
            print("\n".join(lines(model, found)), flush=True)
            figures = {"model": model, "config": dump(config), "variants": found}
            append(errand.file, entry("schedule", device, figures))


def measure(rig: Rig, prices: Pricing) -> dict[str, dict[str, Any]]:
    """Spread of the step, and exposed communication by axis, of every variant."""
    tap = Tap(rig.place.device)
    steps = dict(variants(rig.plan, prices))
    bound = {name: _bound(rig, step, lambda lanes: lanes) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in bound}
    for round_ in range(ROUNDS):
        names = list(bound)
        random.Random(round_).shuffle(names)  # the same on every rank
        for name in names:
            times[name] += _timed(rig, bound[name])
    found = {name: {"step_ms": spread(own).record()} for name, own in times.items()}
    for name, step in steps.items():
        tapped = _bound(rig, step, tap.lanes)
        rounds: list[dict[str, float]] = []
        for _ in range(STEPS):
            rig.transport.barrier()
            tapped.run(rig.environment())
            waits: dict[str, float] = {}
            for call in tap.empty():
                waits[call.name] = waits.get(call.name, 0.0) + call.watch.milliseconds()
            rounds.append(waits)
        last = rounds[1:]
        found[name]["exposed_ms"] = statistics.median(sum(w.values()) for w in last)
        found[name]["waits_ms"] = last[-1]
    return found


def _bound(rig: Rig, step: Step, wrap: Callable[[Any], Any]) -> BoundStep:
    return bind(
        step,
        bodies={**rig.bodies, **collective_bodies(rig.transport)},
        statics=rig.stage.state.statics,
        lanes=wrap(CudaLanes(rig.place.device)),
    )


def _timed(rig: Rig, step: BoundStep) -> list[float]:
    rig.transport.barrier()
    watches: list[Stopwatch] = []
    for _ in range(STEPS):
        watch = Stopwatch(rig.place.device)
        step.run(rig.environment())
        watch.stop()
        watches.append(watch)
    return [watch.milliseconds() for watch in watches[1:]]


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
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--machine", default="H200", help="whose prices the search goes by")
    options = parser.parse_args()
    errand = Errand(
        models=tuple(options.models),
        file=options.file,
        world=options.nproc,
        machine=options.machine,
    )
    with tempfile.TemporaryDirectory() as folder:
        spawn(run_rank, (f"file://{folder}/meeting", errand), nprocs=options.nproc)


if __name__ == "__main__":
    main()

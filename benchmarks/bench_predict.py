"""Does the planner foretell what this machine does? Predicted beside measured, time and memory.

    python benchmarks/bench_predict.py measure FILE [--nproc 2] [--only TEXT]* [key=value ...]
    python benchmarks/bench_predict.py report FILE --machine MACHINE.toml

`measure` runs every configuration a few steps and appends its record to FILE at once: ranks are
started once and run one configuration after the other, those of one GPU side by side. What FILE has
is not run again. Settings given last go to every recipe. `report` needs no GPU: it simulates each
record's recipe at the rates of a machine file (`weft bench calibrate`, whose layers have none of
these shapes) and prints errors and how many pairs are ranked rightly. Beside the error stands the
host's time as it was measured over what the machine file has, and the error at that speed: where a
layout stops for numbers the host is in the step, and a host is not as fast at one time as another.
"""

import argparse
import json
import statistics
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from weft.bench.issue import issue_times
from weft.bench.record import append, entry
from weft.bench.rig import Rig, assemble
from weft.bench.spread import spread
from weft.bench.tap import Tap
from weft.bench.world import Wires, fresh, start
from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.config.load import build, dump
from weft.config.run import RunConfig
from weft.planner.cost import Rates, rates
from weft.planner.machine import machine
from weft.planner.memory import memory
from weft.planner.whole import play_step
from weft.trainer.record import Stopwatch, peak_bytes
from weft.trainer.session import Place

STEPS, WARM_UP = 5, 3
MODELS: dict[str, dict[str, Any]] = {
    "Q": {"preset": "qwen3-30b-a3b", "layers": 4},
    "M": {"preset": "mixtral-8x7b", "layers": 2},
    "D": {"preset": "deepseekmoe", "layers": 4},
    "I": {"preset": "internal-352b", "layers": 1, "experts": 16},
}
SP, DP = ("parallel.sp=2",), ("parallel.dp=2",)
ROWS = ("parallel.ep=2", "parallel.dispatch=all_to_all")
GATHER = ("parallel.ep=2", "parallel.dispatch=all_gather")
TENSOR = ("parallel.attention=tp", "parallel.ffn=tp")
MIXED = ("parallel.attention=tp", *GATHER)
SERIAL = ("overlap.order=serial",)
BF16 = ("compression.gradients=bf16",)
SELECTIVE, FULL = ("overlap.remat=selective",), ("overlap.remat=full",)
TWO, FOUR = ("train.global_batch=4",), ("train.global_batch=8",)  # micro-batches of one rank of dp
WIDE = ("train.micro_batch=4",)
LONG = ("data.sequence=8192", "train.micro_batch=1")

CONFIGURATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    # ---- one GPU
    "Q one": ("Q", TWO),
    "Q one selective": ("Q", (*TWO, *SELECTIVE)),
    "Q one full": ("Q", (*TWO, *FULL)),
    "Q one micro-batch": ("Q", (*TWO, *WIDE)),
    "Q one of 8192": ("Q", (*TWO, *LONG)),
    "Q one of 8192 full": ("Q", (*TWO, *LONG, *FULL)),
    "Q one serial": ("Q", (*TWO, *SERIAL)),
    "M one": ("M", TWO),
    "M one selective": ("M", (*TWO, *SELECTIVE)),
    "M one full": ("M", (*TWO, *FULL)),
    "M one micro-batch": ("M", (*TWO, *WIDE)),
    "M one of 8192": ("M", (*TWO, *LONG)),
    "M one four micro-batches": ("M", FOUR),
    "D one": ("D", TWO),
    "D one selective": ("D", (*TWO, *SELECTIVE)),
    "D one full": ("D", (*TWO, *FULL)),
    "D one micro-batch": ("D", (*TWO, *WIDE)),
    "D one of 8192": ("D", (*TWO, *LONG)),
    "D one four micro-batches": ("D", FOUR),
    "I one": ("I", TWO),
    "I one selective": ("I", (*TWO, *SELECTIVE)),
    "I one full": ("I", (*TWO, *FULL)),
    "I one micro-batch": ("I", (*TWO, *WIDE)),
    "I one of 8192": ("I", (*TWO, *LONG)),
    # ---- two
    "Q sp2 ep2 rows": ("Q", (*TWO, *SP, *ROWS)),
    "Q sp2 ep2 gather": ("Q", (*TWO, *SP, *GATHER)),
    "Q sp2 ep2 gather serial": ("Q", (*TWO, *SP, *GATHER, *SERIAL)),
    "Q sp2 ep2 gather selective": ("Q", (*TWO, *SP, *GATHER, *SELECTIVE)),
    "Q dp2": ("Q", (*FOUR, *DP, *BF16)),
    "Q dp2 ep2 gather": ("Q", (*FOUR, *DP, *GATHER)),
    "Q tp2": ("Q", (*TWO, *SP, *TENSOR)),
    "M sp2 ep2 rows": ("M", (*TWO, *SP, *ROWS)),
    "M sp2 ep2 gather": ("M", (*TWO, *SP, *GATHER)),
    "M sp2 ep2 gather serial": ("M", (*TWO, *SP, *GATHER, *SERIAL)),
    "M sp2 ep2 gather selective": ("M", (*TWO, *SP, *GATHER, *SELECTIVE)),
    "M dp2 ep2 rows": ("M", (*FOUR, *DP, *ROWS)),
    "M tp2": ("M", (*TWO, *SP, *TENSOR)),
    "M tp2 ep2": ("M", (*TWO, *SP, *MIXED)),
    "D sp2 ep2 rows": ("D", (*TWO, *SP, *ROWS)),
    "D sp2 ep2 gather": ("D", (*TWO, *SP, *GATHER)),
    "D dp2 ep2 gather full": ("D", (*FOUR, *DP, *GATHER, *FULL)),
    "D dp2": ("D", (*FOUR, *DP)),
    "I sp2 ep2 gather": ("I", (*TWO, *SP, *GATHER)),
    "I sp2 ep2 rows": ("I", (*TWO, *SP, *ROWS)),
    "I tp2": ("I", (*TWO, *SP, *TENSOR)),
}


def recipe(name: str, settings: Sequence[str] = ()) -> RunConfig:
    """The recipe of a configuration."""
    model, sets = CONFIGURATIONS[name]
    tree = {
        "name": name.replace(" ", "-"),
        "model": {"vocab": 32768, **MODELS[model]},
        "data": {"source": "stdlib", "sequence": 4096},
        "optim": {"lr": 1e-4, "warmup_steps": 0},
        "train": {
            "steps": 1, "global_batch": 4, "micro_batch": 2, "precision": "bfloat16",
            "eval_every": 1, "checkpoint_every": 0, "device": "cuda",
        },
    }  # fmt: skip
    return build(tree, (*sets, *settings))


# ---- measured ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Errand:
    """What the ranks are sent for."""

    names: tuple[str, ...]
    settings: tuple[str, ...]
    file: Path


def run_rank(place: Place, errand: Errand) -> None:
    """Every configuration that this rank has a part in."""
    configs = {name: recipe(name, errand.settings) for name in errand.names}
    alone = [name for name, config in configs.items() if config.parallel.ranks == 1]
    together = [n for n, c in configs.items() if c.parallel.ranks == place.world and n not in alone]
    own = replace(place, rank=0, world=1)
    for name in alone[place.rank :: place.world]:
        measure(name, configs[name], own, Wires(own), errand.file)
    wires = Wires(place)
    for name in sorted(together, key=lambda name: _axes(configs[name])):  # neighbours share a wire
        measure(name, configs[name], place, wires, errand.file)
    wires.close()


def _axes(config: RunConfig) -> tuple[int, ...]:
    return config.parallel.dp, config.parallel.sp, config.parallel.ep


def measure(name: str, config: RunConfig, place: Place, wires: Wires, file: Path) -> None:
    """One configuration; the first of its ranks prints and appends."""
    begun = time.perf_counter()
    figures = one(assemble(config, place, wires.of(config)))
    fresh(place.device)
    if place.rank:
        return
    append(file, entry("predict", place.device, {"name": name, "config": dump(config), **figures}))
    took, peak = time.perf_counter() - begun, figures["peak_bytes"] / 1e9
    print(f"{name}: {figures['step_ms']['median']:.2f} ms, {peak:.2f} GB, {took:.1f} s", flush=True)


def one(rig: Rig) -> dict[str, Any]:
    """Step time, host time, exposed communication and peak memory of one recipe on this rank."""
    device, watches = rig.place.device, list[Stopwatch]()
    for _ in range(WARM_UP):
        rig.stage.bound.run(rig.environment())
    rig.transport.barrier()
    for _ in range(STEPS):
        watch = Stopwatch(device)
        rig.stage.bound.run(rig.environment())
        watch.stop()
        watches.append(watch)
    step = spread([watch.milliseconds() for watch in watches])
    peak = peak_bytes(device)
    host = issue_times(rig, STEPS).median if device.type == "cuda" else None
    tap, waits = Tap(device), dict[str, float]()
    tapped = rig.bound(lambda bodies: bodies, tap.lanes)
    for _ in range(2):
        rig.transport.barrier()
        tapped.run(rig.environment())
        waits = tap.milliseconds()
    return {
        "step_ms": step.record(), "peak_bytes": peak, "host_ms": host, "waits_ms": waits,
    }  # fmt: skip


def measured(file: Path) -> set[str]:
    """The configurations that a file has."""
    if not file.exists():
        return set()
    return {json.loads(line)["name"] for line in file.read_text(encoding="utf-8").splitlines()}


# ---- predicted -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One configuration measured and predicted: milliseconds and bytes; at the host's speed when it
    was measured too, where that is on record.
    """

    name: str
    gpus: int
    step_ms: float
    predicted_ms: float
    host: float | None  # measured over predicted
    at_host_ms: float
    peak: int
    predicted_peak: int

    @property
    def error(self) -> float:
        return self.predicted_ms / self.step_ms - 1

    @property
    def at_host_error(self) -> float:
        return self.at_host_ms / self.step_ms - 1

    @property
    def memory_error(self) -> float:
        return self.predicted_peak / self.peak - 1


def pairs(file: Path, machine_file: str) -> Iterator[Pair]:
    """Every record with its prediction."""
    known = machine(machine_file)
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        config = build(tomllib.loads(record["config"]))
        made, found = plan(config, 0), rates(known, attention=config.kernels.attention)
        step = training_step(made)  # in the order in which it ran
        done, held = play_step(step, found), memory(step, made)
        told = record.get("host_ms")  # none of a CPU, which is its own host
        host = None if told is None else told * 1e-3 / done.issue
        at_host = done if host is None else play_step(step, with_host(found, host))
        yield Pair(
            name=record["name"],
            gpus=made.layout.world,
            step_ms=record["step_ms"]["median"],
            predicted_ms=done.seconds * 1e3,
            host=host,
            at_host_ms=at_host.seconds * 1e3,
            peak=record["peak_bytes"],
            predicted_peak=held.all,
        )


def with_host(found: Rates, factor: float) -> Rates:
    """The same machine with a host that takes that many times as long to issue a body."""
    measured = found.machine.measured
    issue = {body: cost * factor for body, cost in measured.issue.items()}
    slowed = replace(found.machine, measured=replace(measured, issue=issue))
    return replace(found, machine=slowed)


def report(found: Sequence[Pair]) -> Iterator[str]:
    """The table, and what it comes to."""
    heads = (
        ("configuration", "<28"), ("measured", ">10"), ("predicted", ">10"), ("error", ">7"),
        ("host", ">5"), ("error", ">7"), ("GB", ">7"), ("error", ">7"),
    )  # fmt: skip
    yield " ".join(f"{text:{width}}" for text, width in heads)
    for pair in found:
        yield (
            f"{pair.name:<28} {pair.step_ms:>7.1f} ms {pair.predicted_ms:>7.1f} ms "
            f"{pair.error:>+7.1%} {_host(pair)} {pair.peak / 1e9:>7.2f} {pair.memory_error:>+7.1%}"
        )
    for gpus in sorted({pair.gpus for pair in found}):
        own = [pair for pair in found if pair.gpus == gpus]
        yield _summary(f"time on {gpus}", own, lambda pair: abs(pair.error))
        if any(pair.host is not None for pair in own):
            yield _summary(
                f"time on {gpus} at its host's speed", own, lambda pair: abs(pair.at_host_error)
            )
        yield _summary(f"memory on {gpus}", own, lambda pair: abs(pair.memory_error))
    apart = [
        (a, b)
        for a, b in combinations(found, 2)
        if a.name[0] == b.name[0] and abs(a.step_ms / b.step_ms - 1) > RANKED
    ]
    right = sum((a.step_ms < b.step_ms) == (a.predicted_ms < b.predicted_ms) for a, b in apart)
    share = right / max(len(apart), 1)
    told = f"{right} of {len(apart)} ranked rightly, {share:.1%}"
    yield f"pairs of one model over {RANKED:.0%} apart: {told}"


def _host(pair: Pair) -> str:
    if pair.host is None:
        return f"{'':>5} {'':>7}"
    return f"{pair.host:>5.2f} {pair.at_host_error:>+7.1%}"


RANKED = 0.03  # measured times closer than this are not ranked


def _summary(what: str, found: Sequence[Pair], error: Callable[[Pair], float]) -> str:
    errors = [error(pair) for pair in found]
    return f"{what}: median error {statistics.median(errors):.1%}, largest {max(errors):.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("measure", "report"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--only", action="append", help="names that contain this")
    parser.add_argument("--machine", default="H200")
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    if options.verb == "report":
        print("\n".join(report(list(pairs(options.file, options.machine)))))
        return
    done, words = measured(options.file), options.only or [""]
    wanted = [n for n in CONFIGURATIONS if n not in done and any(word in n for word in words)]
    settings = tuple(options.settings)
    errand = Errand(names=tuple(wanted), settings=settings, file=options.file)
    if wanted:
        device = recipe(wanted[0], settings).train.device
        start(run_rank, errand, world=options.nproc, device=device)


if __name__ == "__main__":
    main()

"""What does each layout cost on two devices: time, bytes received, communication exposed?

    python benchmarks/bench_layouts.py [--out FILE] [--only WORD]* [--shape Q|M]* [key=value ...]

A few whole steps of the shapes Q, of Qwen3-30B-A3B, and M, of Mixtral-8x7B, on random tokens, with
the bytes that a rank receives in a step and how long compute stood still for them. Settings given
last go to every run. One pair of processes does everything, one layout after the other, and leaves
a record of each as it ends. Whether layouts learn alike is asked by `bench_follow.py`.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.bench import profile as profiling
from weft.bench.ceilings import Ceilings, stored
from weft.bench.record import append, entry
from weft.bench.rig import Rig, assemble
from weft.bench.spread import spread
from weft.bench.world import Wires, fresh, start
from weft.config.load import build, dump
from weft.config.run import RunConfig
from weft.errors import WeftError
from weft.model.count import token_flops
from weft.runtime.state import precision
from weft.trainer.record import Stopwatch, peak_bytes
from weft.trainer.session import Place

GATHER = "parallel.dispatch=all_gather"
LAYOUTS: Mapping[str, tuple[str, ...]] = {  # neighbours share a wire
    "sp2 ep2 all-gather": ("parallel.sp=2", "parallel.ep=2", GATHER),
    "sp2 ep2 all-to-all": ("parallel.sp=2", "parallel.ep=2", "parallel.dispatch=all_to_all"),
    "sp2 ep2 de-duplicated": ("parallel.sp=2", "parallel.ep=2", "parallel.dispatch=deduplicated"),
    "tp2 ep2 all-gather": ("parallel.sp=2", "parallel.ep=2", "parallel.attention=tp", GATHER),
    "cp2 ep2 all-gather": ("parallel.sp=2", "parallel.ep=2", "parallel.attention=cp", GATHER),
    "sp2 ep2 all-gather, eight bits": (
        "parallel.sp=2", "parallel.ep=2", GATHER, "compression.dispatch=fp8",
        "compression.combine=fp8", "compression.dispatch_grad=fp8", "compression.combine_grad=fp8",
    ),
    "tp2 tp2": ("parallel.sp=2", "parallel.attention=tp", "parallel.ffn=tp"),
    "sp2 tp2": ("parallel.sp=2", "parallel.ffn=tp"),
    "dp2 ep2 all-gather": ("parallel.dp=2", "parallel.ep=2", GATHER),
    "dp2, gradients in FP32": ("parallel.dp=2",),
    "dp2, gradients in BF16": ("parallel.dp=2", "compression.gradients=bf16"),
    "pp2": ("parallel.pp=2",),
    "pp2 zero-bubble": ("parallel.pp=2", "parallel.pipeline=zero_bubble"),
}  # fmt: skip
SHAPES: Mapping[str, Mapping[str, Any]] = {
    name: {
        "name": name,
        "model": {"preset": preset, "vocab": 32768, "layers": layers},
        "data": {"source": "stdlib", "sequence": 4096},
        "optim": {"lr": 3e-4, "warmup_steps": 1},
        "train": {
            "global_batch": 4, "micro_batch": 1, "steps": 1, "precision": "bfloat16",
            "eval_every": 1, "checkpoint_every": 0, "device": "cuda",
        },
    }
    for name, preset, layers in (("Q", "qwen3-30b-a3b", 4), ("M", "mixtral-8x7b", 2))
}  # fmt: skip
STEPS, WARM_UP = 5, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What both processes do: layouts by name, shapes, settings for all, where results go."""

    layouts: Mapping[str, tuple[str, ...]]
    shapes: tuple[str, ...]
    settings: tuple[str, ...]
    out: Path | None


def chosen(words: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """The layouts whose names have one of the words, all where there is none."""
    return {n: s for n, s in LAYOUTS.items() if any(word in n for word in words or [""])}


def visit(
    place: Place,
    layouts: Mapping[str, tuple[str, ...]],
    recipe: Callable[[Sequence[str]], RunConfig],
    run: Callable[[str, Rig], object],
) -> None:
    """Sets this rank up for one layout after the other; one that is refused leaves the others.

    Raises:
        WeftError: all of them are refused.
    """
    wires, refused = Wires(place), list[WeftError]()
    for name, sets in layouts.items():
        try:
            config = recipe(sets)
            rig = assemble(config, place, wires.of(config))
        except WeftError as error:
            print(f"{name:<32} refused on rank {place.rank}: {error}", flush=True)
            refused.append(error)
            continue
        run(name, rig)
        del rig
        fresh(place.device)
    wires.close()
    if len(refused) == len(layouts):
        raise refused[-1]


def process(place: Place, work: Work) -> None:
    """One of two processes: every shape in every layout."""
    for shape in work.shapes:
        measure(place, work, shape)


def measure(place: Place, work: Work, shape: str) -> None:
    """Every layout of one shape; the first rank prints and appends."""
    act = precision(build(SHAPES[shape], work.settings).train.precision).act
    ceilings = stored(place.device, act)

    def recipe(sets: Sequence[str]) -> RunConfig:
        return build(SHAPES[shape], (*work.settings, *sets))

    def run(name: str, rig: Rig) -> None:
        found = {"what": "speed", "shape": shape, "layout": name, **speed(rig, ceilings)}
        if place.rank == 0:
            print("  ".join(words(found)), flush=True)
            tell(work.out, rig, found)

    visit(place, work.layouts, recipe, run)


def speed(rig: Rig, ceilings: Ceilings) -> dict[str, Any]:
    """Time of a step, and of one whose waits are timed."""
    place, watches = rig.place, list[Stopwatch]()
    rig.transport.barrier()
    for _ in range(STEPS + WARM_UP):
        watch = Stopwatch(place.device)
        rig.stage.bound.run(rig.environment())
        watch.stop()
        watches.append(watch)
    times = spread([watch.milliseconds() for watch in watches[WARM_UP:]])
    peak = peak_bytes(place.device)
    found = profiling.profile(rig, steps=2, ceilings=ceilings)
    rate = rig.tokens / times.median * 1e3 / place.world
    flops = token_flops(rig.plan.shape, sequence=rig.plan.sequence)
    return {
        "step_ms": times.record(),
        "tokens_per_s_gpu": rate,
        "tflops_gpu": rate * flops / 1e12,
        "received_bytes": sum(profiling.wire(rig.stage.step, on_device=True).values()),
        "exposed_ms": found.exposed_ms,
        "peak_bytes": peak,
    }


def tell(out: Path | None, rig: Rig, found: Mapping[str, Any]) -> None:
    """Leaves a record in the file, if there is one."""
    if out:
        made = {"recipe": rig.config.name, "config": dump(rig.config), **found}
        append(out, entry("layouts", rig.place.device, made))


def words(found: Mapping[str, Any]) -> Iterator[str]:
    """A result as a row of a table."""
    yield f"{found['shape']:<2} {found['layout']:<32}"
    yield f"{found['tokens_per_s_gpu']:>9,.0f} tokens/s a GPU, {found['tflops_gpu']:.0f} TFLOP/s"
    yield f"{found['received_bytes'] / 1e9:.2f} GB received"
    yield f"{found['exposed_ms']:.1f} of {found['step_ms']['median']:.1f} ms exposed"
    yield f"{found['peak_bytes'] / 2**30:.1f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", action="append", help="layouts whose names have a word")
    parser.add_argument("--shape", action="append", choices=list(SHAPES))
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    work = Work(
        layouts=chosen(options.only or []),
        shapes=tuple(options.shape or SHAPES),
        settings=tuple(options.settings),
        out=options.out,
    )
    device = build(SHAPES[work.shapes[0]], work.settings).train.device
    start(process, work, world=2, device=device)


if __name__ == "__main__":
    main()

"""Do two GPUs follow one, in every layout, and how fast is each?

    python benchmarks/bench_layouts.py [--steps 200] [--out FILE] [--only WORD ...] [key=value ...]

Two questions, one table. `follows`: a small model learns real text, and the loss of each layout is
compared with that of one GPU; the yardstick is one GPU with its micro-batch halved, the same
mathematics in another order of summation. `speed`: a few whole steps of the shapes Q, of
Qwen3-30B-A3B, and M, of Mixtral-8x7B, on random tokens, with the bytes that a rank receives in a
step and how long compute stood still for them. Settings given last go to every run of two GPUs.

One pair of processes does everything, one layout after the other.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

import weft
from weft.bench import profile as profiling
from weft.bench.ceilings import Ceilings, stored
from weft.bench.record import append, entry
from weft.bench.rig import Rig, assemble, rigged
from weft.bench.spread import spread
from weft.config.load import build, dump
from weft.config.run import RunConfig
from weft.errors import WeftError
from weft.model.count import token_flops
from weft.optim.lr import learning_rate
from weft.runtime.backends import prepare
from weft.runtime.stage import Rates
from weft.trainer.feed import Feed, open_feed
from weft.trainer.record import Stopwatch, peak_bytes
from weft.trainer.session import Place, connect

ONE, HALVED = "one GPU", "one GPU, micro-batch halved"
GATHER = "parallel.dispatch=all_gather"
LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "sp2 ep2 all-to-all": ("parallel.sp=2", "parallel.ep=2"),
    "sp2 ep2 all-gather": ("parallel.sp=2", "parallel.ep=2", GATHER),
    "sp2 ep2 de-duplicated": ("parallel.sp=2", "parallel.ep=2", "parallel.dispatch=deduplicated"),
    "tp2 tp2": ("parallel.sp=2", "parallel.attention=tp", "parallel.ffn=tp"),
    "sp2 tp2": ("parallel.sp=2", "parallel.ffn=tp"),
    "tp2 ep2 all-gather": ("parallel.sp=2", "parallel.ep=2", "parallel.attention=tp", GATHER),
    "cp2 ep2 all-gather": ("parallel.sp=2", "parallel.ep=2", "parallel.attention=cp", GATHER),
    "dp2 ep2 all-gather": ("parallel.dp=2", "parallel.ep=2", GATHER),
    "dp2, gradients in FP32": ("parallel.dp=2",),
    "dp2, gradients in BF16": ("parallel.dp=2", "compression.gradients=bf16"),
    "pp2": ("parallel.pp=2",),
    "pp2 zero-bubble": ("parallel.pp=2", "parallel.pipeline=zero_bubble"),
    "sp2 ep2 all-gather, eight bits": (
        "parallel.sp=2", "parallel.ep=2", GATHER, "compression.dispatch=fp8",
        "compression.combine=fp8", "compression.dispatch_grad=fp8", "compression.combine_grad=fp8",
    ),
}  # fmt: skip
SMALL: Mapping[str, Any] = {
    "name": "follows",
    "model": {
        "family": "qwen3_moe", "vocab": 512, "hidden": 1024, "layers": 2, "heads": 8, "kv_heads": 4,
        "head_dim": 128, "ffn_hidden": 1024, "experts": 16, "top_k": 4,
    },
    "data": {"source": "stdlib", "sequence": 1024},
    "optim": {"lr": 3e-4, "warmup_steps": 10},
    "train": {"global_batch": 8, "micro_batch": 2, "steps": 200, "eval_every": 200},
}  # fmt: skip
SHAPES: Mapping[str, Mapping[str, Any]] = {
    name: {
        "name": name,
        "model": {"preset": preset, "vocab": 32768, "layers": layers},
        "data": {"source": "stdlib", "sequence": 4096},
        "optim": {"lr": 3e-4, "warmup_steps": 1},
        "train": {"global_batch": 4, "micro_batch": 1, "steps": 1, "eval_every": 1},
    }
    for name, preset, layers in (("Q", "qwen3-30b-a3b", 4), ("M", "mixtral-8x7b", 2))
}
COMMON = ("train.precision=bfloat16", "train.device=cuda", "train.checkpoint_every=0")
SPEED_STEPS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What both processes do: layouts by name, settings for all, steps, where results go."""

    layouts: Mapping[str, tuple[str, ...]]
    settings: tuple[str, ...]
    steps: int
    shapes: tuple[str, ...]
    out: Path | None
    folder: Path


def main() -> None:
    """Starts both processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", default=[""], help="layouts whose names have a word")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("settings", nargs="*")
    options = parser.parse_args()
    chosen = {n: s for n, s in LAYOUTS.items() if any(word in n for word in options.only)}
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            layouts=chosen,
            settings=tuple(options.settings),
            steps=options.steps,
            shapes=tuple(options.shapes),
            out=options.out,
            folder=Path(folder),
        )
        spawn(process, (work,), nprocs=2)


def process(rank: int, work: Work) -> None:
    """One of two processes: everything, in the order of the table."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    if work.steps:
        follow_all(rank, work, device)
    ceilings = stored(device, torch.bfloat16)
    for shape in work.shapes:
        for number, (name, sets) in enumerate(work.layouts.items()):
            place = pair(rank, device, work.folder / f"{shape}-{number}")
            config = build(SHAPES[shape], (*COMMON, *work.settings, *sets))
            found = attempt(name, rank, lambda c=config, p=place: speed(c, p, ceilings))
            if found and rank == 0:
                say(
                    work, device, config, {"what": "speed", "shape": shape, "layout": name, **found}
                )


def pair(rank: int, device: torch.device, meeting: Path) -> Place:
    """A place among two that meet at a file of their own."""
    return Place(rank=rank, world=2, device=device, meeting=f"file://{meeting}", neighbours=2)


def attempt(name: str, rank: int, run: Any) -> Any:
    """What a run found; a layout that is refused says so and leaves the others."""
    try:
        return run()
    except WeftError as error:
        if rank == 0:
            print(f"{name:<32} refused: {error}", flush=True)
        return None
    finally:
        torch.cuda.empty_cache()


# ---- following -----------------------------------------------------------------------------------


def follow_all(rank: int, work: Work, device: torch.device) -> None:
    """One GPU first, on each device one way of summation; then every layout."""
    common = (*COMMON, f"train.steps={work.steps}", f"train.run_dir={work.folder / 'run'}")
    halved = SMALL["train"]["micro_batch"] // 2
    sets = (f"train.micro_batch={halved}",) if rank else ()
    alone = Place(rank=0, world=1, device=device, meeting=None, neighbours=2)
    config = build(SMALL, (*common, *sets))
    prepare(device, threads=None, neighbours=2)
    losses = train(config, alone, open_feed(config), work.steps)
    print(f"{HALVED if rank else ONE:<32} {losses[0]:.4f} to {losses[-1]:.4f}", flush=True)
    feed = open_feed(build(SMALL, common))
    torch.save(losses, work.folder / f"alone-{rank}")
    runs: dict[str, Sequence[float]] = {}
    for number, (name, sets) in enumerate(work.layouts.items()):
        place = pair(rank, device, work.folder / f"follow-{number}")
        config = build(SMALL, (*common, *work.settings, *sets))
        found = attempt(name, rank, lambda c=config, p=place: train(c, p, feed, work.steps))
        if found:
            runs[name] = found
            if rank == 0:
                print(f"{name:<32} {found[0]:.4f} to {found[-1]:.4f}", flush=True)
    if rank == 0:
        one, other = (torch.load(work.folder / f"alone-{r}") for r in (0, 1))
        for name, found in chain([(ONE, one), (HALVED, other)], runs.items()):
            own = (f"train.micro_batch={halved}",) if name == HALVED else ()
            shared = (*work.settings, *work.layouts[name]) if name in work.layouts else own
            config = build(SMALL, (*common, *shared))
            say(work, device, config, {"what": "follows", "layout": name, **apart(found, one)})


def train(config: RunConfig, place: Place, feed: Feed, steps: int) -> list[float]:
    """The loss of each step, read when all are done."""
    transport = connect(config, place)
    try:
        rig = assemble(config, place, transport)
        return [float(loss) for loss in losses_of(rig, feed, steps)]
    finally:
        transport.close()
        if place.world > 1:
            dist.destroy_process_group()


def losses_of(rig: Rig, feed: Feed, steps: int) -> list[torch.Tensor]:
    """The loss of each step on real text, left on the device."""
    optim, made = rig.config.optim, rig.stage
    found = []
    for step in range(steps):
        lr = learning_rate(
            step,
            peak=optim.lr,
            floor_ratio=optim.min_lr_ratio,
            warmup=optim.warmup_steps,
            total=steps,
        )
        rates = Rates(lr=lr, weight_decay=optim.weight_decay, step=step + 1)
        batches = feed.load(made.plan, step, rig.place.device)
        divisor = float(feed.training.divisor(step))
        found.append(made.train(batches, divisor=divisor, rates=rates)["stats"][0].clone())
    return found


def apart(losses: Sequence[float], one: Sequence[float]) -> dict[str, float]:
    """How far a run is from that of one GPU."""
    gaps = [abs(a - b) for a, b in zip(losses, one, strict=True)]
    return {
        "largest": max(gaps),
        "mean": statistics.fmean(gaps),
        "mean_last_tenth": statistics.fmean(gaps[-max(1, len(gaps) // 10) :]),
        "first": losses[0],
        "last": losses[-1],
    }


# ---- speed ---------------------------------------------------------------------------------------


def speed(config: RunConfig, place: Place, ceilings: Ceilings) -> dict[str, Any]:
    """Time of a step, and of one whose waits are timed."""
    with rigged(config, place) as rig:
        torch.cuda.reset_peak_memory_stats(place.device)
        watches = []
        for _ in range(SPEED_STEPS + 2):
            watch = Stopwatch(place.device)
            rig.stage.bound.run(rig.environment())
            watch.stop()
            watches.append(watch)
        times = spread([watch.milliseconds() for watch in watches[2:]])
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


def say(work: Work, device: torch.device, config: RunConfig, found: Mapping[str, Any]) -> None:
    """A line on the screen, a record in the file."""
    print("  ".join(words(found)), flush=True)
    if work.out:
        made = {"recipe": config.name, "config": dump(config), **found}
        append(work.out, entry("layouts", device, made))


def words(found: Mapping[str, Any]) -> Iterator[str]:
    """A result as a row of a table."""
    yield f"{found.get('shape', 'loss'):<4} {found['layout']:<32}"
    if found["what"] == "follows":
        yield f"largest difference {found['largest']:.4f}, mean {found['mean']:.5f}"
        yield f"in the last tenth {found['mean_last_tenth']:.5f}"
        yield f"loss {found['first']:.4f} to {found['last']:.4f}"
        return
    yield f"{found['tokens_per_s_gpu']:>9,.0f} tokens/s a GPU, {found['tflops_gpu']:.0f} TFLOP/s"
    yield f"{found['received_bytes'] / 1e9:.2f} GB received"
    yield f"{found['exposed_ms']:.1f} of {found['step_ms']['median']:.1f} ms exposed"
    yield f"{found['peak_bytes'] / 2**30:.1f} GiB"


if __name__ == "__main__":
    print(f"weft {weft.__version__}, torch {torch.__version__}")
    main()

"""One GPU: what a lane crossing costs, what attention reaches, and where two models' steps go.

    python benchmarks/bench_gpu.py FILE [--steps 10] [--only ceilings executor attention steps]

FILE gets one JSON object a figure. A part that fails prints its traceback and the others go on; a
short table comes last. The recipes are those for two GPUs, laid out on one.

    ceilings     a large product and a large copy: what the others are to be read against
    executor     host time a task and a lane crossing, bodies that do nothing
    attention    cuDNN, flash, and flash's repeatable backward (bench_attention.py)
    steps        every body of a step of each recipe, one and four documents a sequence
"""

import argparse
import gc
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_attention
import torch

from weft.bench import executor, record, step
from weft.bench.spread import Spread, spread
from weft.config.load import dump, load
from weft.runtime.backends import pick_device, prepare
from weft.trainer.session import Place

RECIPES = ("h200-mixtral-2layer", "h200-qwen3-6layer")
ONE_GPU = ("parallel.dp=1", "parallel.sp=1", "parallel.ep=1", "train.device=cuda")
DOCUMENTS = (1, 4)  # full sequences, and what packing makes of a corpus
ATTENTION = ((1, 4096), (1, 8192))  # sequences, positions
SIDE = 8192  # of a square product that fills the chip
COPIED_BYTES = 2**32
ROUNDS = 20

Part = Callable[[torch.device, Path, int], Iterator[str]]  # yields lines for the table


def ceilings(device: torch.device, file: Path, steps: int) -> Iterator[str]:
    """The product and the copy, on random data."""
    del steps
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 255, (COPIED_BYTES,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    product = timed(lambda: torch.mm(a, b))
    copy = timed(lambda: target.copy_(source))
    tflops, rate = 2 * SIDE**3 / product.median / 1e9, 2 * COPIED_BYTES / copy.median / 1e9
    figures = {"product_ms": product.record(), "copy_ms": copy.record()}
    line = {**figures, "product_tflops": tflops, "copy_tb_per_s": rate}
    record.append(file, record.entry("ceilings", device, line))
    yield f"product of {SIDE}^3 in bf16: {tflops:.0f} TFLOP/s; copy: {rate:.2f} TB/s"


def timed(run: Callable[[], object]) -> Spread:
    """Milliseconds of one run on the device."""
    times = []
    for _ in range(ROUNDS + 3):  # the first three warm up
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return spread(times[3:])


def executors(device: torch.device, file: Path, steps: int) -> Iterator[str]:
    """The executor alone, with host lanes and with CUDA lanes."""
    del steps
    for where in (torch.device("cpu"), device):
        found = executor.measure(where)
        record.append(file, record.entry("executor", device, executor.record(found)))
        yield executor.render(found)


def attention(device: torch.device, file: Path, steps: int) -> Iterator[str]:
    """Every kernel at every shape, one line each."""
    del steps
    for batch, length in ATTENTION:
        for row in bench_attention.measure(batch, length):
            record.append(file, record.entry("attention", device, row))
            yield (
                f"attention b{batch} s{length} {row['kernel']:<18} "
                f"forward {row['forward_tflops']:4.0f}, backward {row['backward_tflops']:4.0f} "
                f"TFLOP/s, {'same bits' if row['repeatable'] else 'bits differ'}"
            )


def step_of(recipe: str, documents: int) -> Part:
    """The part that measures one recipe."""

    def part(device: torch.device, file: Path, steps: int) -> Iterator[str]:
        folder = Path(__file__).parents[1] / "recipes"
        config = load(folder / f"{recipe}.toml", ONE_GPU)
        place = Place(rank=0, world=1, device=device, meeting=None)
        report = step.measure(config, place, steps=steps, documents=documents)
        print(step.render(report), flush=True)
        figures: dict[str, Any] = {"recipe": recipe, "documents": documents, "config": dump(config)}
        record.append(file, record.entry("step", device, {**figures, **step.record(report)}))
        yield f"{recipe}, {documents} document(s) a sequence\n{step.summary(report)}"

    return part


def parts(wanted: list[str]) -> Iterator[tuple[str, Part]]:
    """The parts asked for, in order."""
    for name, part in (("ceilings", ceilings), ("executor", executors), ("attention", attention)):
        if name in wanted:
            yield name, part
    if "steps" in wanted:
        for recipe in RECIPES:
            for documents in DOCUMENTS:
                yield f"step of {recipe}, {documents}", step_of(recipe, documents)


def main() -> None:
    names = ["ceilings", "executor", "attention", "steps"]
    parser = argparse.ArgumentParser(description="One GPU, measured.")
    parser.add_argument("file", type=Path, help="gets one JSON object a figure")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    device = pick_device("cuda", 0)
    prepare(device, threads=None, neighbours=1)
    table: list[str] = []
    for name, part in parts(arguments.only):
        print(f"== {name}", flush=True)
        try:
            table.extend(part(device, arguments.file, arguments.steps))
        except Exception:  # noqa: BLE001 - one part that fails does not stop the others
            traceback.print_exc()
            table.append(f"{name}: FAILED, its traceback is above")
        gc.collect()  # a failed part's frames hold its tensors until then
        torch.cuda.empty_cache()
    print("== table\n" + "\n".join(table), flush=True)


if __name__ == "__main__":
    main()

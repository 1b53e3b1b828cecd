"""Do several GPUs follow one? The loss of each layout over a few hundred steps on real text, beside
the loss of one GPU.

    python benchmarks/bench_layouts.py RECIPE [--steps 200] [--out FILE] [key.path=value ...]

The yardstick is one GPU with its micro-batch halved: the same mathematics in another order of
summation. Runs of one GPU go side by side on two devices. Prints tokens/s, TFLOP/s and peak memory
of each run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import weft
from weft.compose.recipe import shape
from weft.model.count import token_flops

ONE = "one GPU"
HALVED = "one GPU, micro-batch halved"
LAYOUTS = {
    "sp2 ep2 all-to-all": ("parallel.sp=2", "parallel.ep=2", "parallel.dispatch=all_to_all"),
    "sp2 ep2 all-gather": ("parallel.sp=2", "parallel.ep=2", "parallel.dispatch=all_gather"),
    "dp2 ep2 all-to-all": ("parallel.dp=2", "parallel.sp=1", "parallel.ep=2"),
}
SETTLING = 10  # first steps: kernels are loaded, memory pools fill


def main() -> None:
    """Runs every variant and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    common = [
        f"train.steps={options.steps}",
        f"train.eval_every={options.steps}",
        "train.checkpoint_every=0",
        f"train.log_every={options.steps}",
        *options.overrides,
    ]
    with tempfile.TemporaryDirectory() as scratch:
        runs = measure(options.recipe, common, Path(scratch))
    report(options, runs, common)


def measure(recipe: str, common: list[str], scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """The metrics of every variant."""
    alone = ["parallel.dp=1", "parallel.sp=1", "parallel.ep=1"]
    micro = weft.load(recipe, *common, *alone).train.micro_batch
    singles = {ONE: alone, HALVED: [*alone, f"train.micro_batch={micro // 2}"]}
    started = [
        (name, start(recipe, [*common, *sets], scratch / str(gpu), str(gpu)))
        for gpu, (name, sets) in enumerate(singles.items())
    ]
    runs = {
        name: finish(process, scratch / str(gpu)) for gpu, (name, process) in enumerate(started)
    }
    for number, (name, sets) in enumerate(LAYOUTS.items(), start=2):
        folder = scratch / str(number)
        runs[name] = finish(start(recipe, [*common, *sets], folder, "0,1"), folder)
    return runs


def start(recipe: str, sets: list[str], folder: Path, devices: str) -> subprocess.Popen[bytes]:
    """Starts one training run on these devices."""
    command = [sys.executable, "-m", "weft", "train", recipe]
    for setting in (*sets, f"train.run_dir={folder}"):
        command += ["--set", setting]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": devices}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes], folder: Path) -> list[dict[str, Any]]:
    """The records of a run, when it has ended well."""
    if process.wait() != 0:
        sys.exit(f"a run ended with exit code {process.returncode}; its logs were in {folder}")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def report(
    options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], common: list[str]
) -> None:
    """Prints one line a variant and appends them to the results."""
    config = weft.load(options.recipe, *common)
    flops = token_flops(shape(config.model), sequence=config.data.sequence)
    rows = [row(name, records, runs[ONE], flops) for name, records in runs.items()]
    print(f"{options.recipe}, {options.steps} steps on real text; differences of the loss to {ONE}")
    for entry in rows:
        print(
            f"{entry['variant']:<30} max |d loss| {entry['max_difference']:.5f}  "
            f"mean {entry['mean_difference']:.5f}  last loss {entry['last_loss']:.4f}  "
            f"{entry['tokens_per_s_gpu']:,.0f} tokens/s a GPU "
            f"(p10 {entry['p10']:,.0f}, p90 {entry['p90']:,.0f})  "
            f"{entry['tflops_gpu']:.0f} TFLOP/s a GPU  peak {entry['peak_gib']:.1f} GiB"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as file:
            for entry in rows:
                file.write(
                    json.dumps({"recipe": options.recipe, "steps": options.steps, **entry}) + "\n"
                )


def row(
    name: str, records: list[dict[str, Any]], one: list[dict[str, Any]], flops: int
) -> dict[str, Any]:
    """The figures of one variant."""
    gpus = 1 if name in (ONE, HALVED) else 2
    gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(records, one, strict=True)]
    rates = sorted(r["tokens_per_s"] / gpus for r in records[SETTLING:])
    median = statistics.median(rates)
    return {
        "variant": name,
        "max_difference": max(gaps),
        "mean_difference": statistics.fmean(gaps),
        "last_loss": records[-1]["loss"],
        "tokens_per_s_gpu": median,
        "p10": rates[len(rates) // 10],
        "p90": rates[-1 - len(rates) // 10],
        "tflops_gpu": median * flops / 1e12,
        "peak_gib": max(r["peak_bytes"] for r in records) / 2**30,
    }


if __name__ == "__main__":
    main()

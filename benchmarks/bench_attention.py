"""Attention on a GPU: cuDNN, flash, and flash's deterministic backward, side by side in one
process.

    python benchmarks/bench_attention.py [--out FILE]

Random bfloat16 data, medians of interleaved runs; every backward is repeated on the same inputs and
compared bit for bit. FLOPs are causal: 4 S^2 C / 2 a head forward, 2.5 times that backward.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from weft.ops import attention_cuda as gpu
from weft.ops.attention import Segments, segments

HEADS, KV_HEADS, CHANNELS = 32, 8, 128
SHAPES = ((4, 4096), (1, 8192), (2, 8192))  # sequences, positions
ROUNDS = 20
REPEATS = 5

Run = Callable[[], tuple[Tensor, ...]]
KERNELS = {
    "cudnn": (gpu.attention_cudnn, gpu.attention_cudnn_dgrad),
    "flash": (gpu.attention_flash, gpu.attention_flash_dgrad),
    "flash, repeatable": (gpu.attention_flash, gpu.attention_flash_dgrad_repeatable),
    "default": (gpu.attention_mixed, gpu.attention_flash_dgrad_repeatable),
}


def main() -> None:
    """Measures every shape and prints one line a kernel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    torch.utils.deterministic.fill_uninitialized_memory = False
    for batch, length in SHAPES:
        for row in measure(batch, length):
            print(
                f"b{batch} s{length} {row['kernel']:<18} forward {row['forward_ms']:7.3f} ms "
                f"{row['forward_tflops']:4.0f} TFLOP/s   backward {row['backward_ms']:7.3f} ms "
                f"(p90 {row['backward_p90_ms']:.3f}) {row['backward_tflops']:4.0f} TFLOP/s   "
                f"{'same bits' if row['repeatable'] else 'bits differ'} in {REPEATS} runs"
            )
            if out:
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def measure(batch: int, length: int) -> list[dict[str, object]]:
    """One row a kernel, all kernels interleaved."""
    tokens = batch * length
    documents = segments(range(length, tokens + 1, length), "cuda")
    q, da = (random(tokens, HEADS) for _ in range(2))
    k, v = (random(tokens, KV_HEADS) for _ in range(2))
    runs = {name: bind(name, q, k, v, da, documents) for name in KERNELS}
    times: dict[tuple[str, str], list[float]] = {}
    for round_ in range(ROUNDS + 3):  # the first three warm up
        for name, pair in runs.items():
            for phase, run in zip(("forward", "backward"), pair, strict=True):
                elapsed = time(run)
                if round_ >= 3:
                    times.setdefault((name, phase), []).append(elapsed)
    flops = 2 * batch * length**2 * HEADS * CHANNELS
    return [row(name, batch, length, times, flops, runs[name][1]) for name in KERNELS]


def bind(
    name: str, q: Tensor, k: Tensor, v: Tensor, da: Tensor, documents: Segments
) -> tuple[Run, Run]:
    """The forward and the backward of a kernel over fixed inputs."""
    forward, backward = KERNELS[name]
    a, lse = forward(q, k, v, documents)
    return (
        lambda: forward(q, k, v, documents),
        lambda: backward(da, q, k, v, a, lse, documents),
    )


def row(
    name: str,
    batch: int,
    length: int,
    times: dict[tuple[str, str], list[float]],
    flops: int,
    backward: Run,
) -> dict[str, object]:
    """The figures of one kernel at one shape."""
    forward_ms = statistics.median(times[name, "forward"])
    back = sorted(times[name, "backward"])
    backward_ms = statistics.median(back)
    return {
        "bench": "attention",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "kernel": name,
        "batch": batch,
        "length": length,
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "forward_ms": forward_ms,
        "forward_tflops": flops / forward_ms / 1e9,
        "backward_ms": backward_ms,
        "backward_p90_ms": back[int(0.9 * len(back))],
        "backward_tflops": 2.5 * flops / backward_ms / 1e9,
        "repeatable": is_repeatable(backward),
    }


def is_repeatable(run: Run) -> bool:
    """Whether a run gives the same bits every time."""
    first = run()
    return all(
        torch.equal(a, b) for _ in range(REPEATS - 1) for a, b in zip(first, run(), strict=True)
    )


def time(run: Run) -> float:
    """Milliseconds of one run on the device."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def random(tokens: int, heads: int) -> Tensor:
    """Normal data in bfloat16."""
    return torch.randn(tokens, heads, CHANNELS, device="cuda", dtype=torch.bfloat16)


if __name__ == "__main__":
    main()

"""How much memory the way in from a Hugging Face checkpoint and the way out take, beside its size.

    load    every parameter into a flat buffer of its own, as a rank's state is filled
    export  every parameter out of those buffers into files with an index

A synthetic Mixtral in bfloat16 is written first. Each way runs in a process of its own, which reads
its peak from the kernel: the anonymous part, that nobody can take back, and all of it, mapped pages
of files included.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from threading import Event, Thread
from typing import Self

import torch

from weft.checkpoint.hf.config import read_config
from weft.checkpoint.hf.dialect import entries, numel
from weft.checkpoint.hf.read import open_pretrained
from weft.checkpoint.hf.write import export
from weft.config.model import ModelConfig

BOUND = 1.2  # of the size of the checkpoint


def model_of(gigabytes: float) -> ModelConfig:
    """A Mixtral of about that size in bfloat16: one layer is 0.101 GB, the tables 0.066."""
    layers = max(1, round((gigabytes - 0.066) / 0.103))
    return ModelConfig(
        family="mixtral", vocab=16384, hidden=1024, layers=layers, heads=16, kv_heads=4,
        head_dim=64, ffn_hidden=2048, experts=8, top_k=2,
    )  # fmt: skip


class Meter:
    """The largest resident memory of this process between `with` and its end, over that before."""

    def __enter__(self) -> Self:
        self._stop, self.anonymous, self.resident = Event(), 0, 0
        self._before = _memory()
        self._thread = Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            now = _memory()
            self.anonymous = max(self.anonymous, now[0] - self._before[0])
            self.resident = max(self.resident, now[1] - self._before[1])


def _memory() -> tuple[int, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    anonymous, whole = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))
    return anonymous, whole


def load(folder: Path) -> dict[str, torch.Tensor]:
    with open_pretrained(folder) as pretrained:
        dialect, model = read_config(pretrained.config, report=print)
        held = {}
        for entry in entries(dialect, model):
            held[entry.part.name] = torch.empty(numel(entry.part), dtype=torch.bfloat16)
            held[entry.part.name].copy_(pretrained.read(entry.part).view(-1))
        return held


def way(what: str, folder: Path, results: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    begun = time.perf_counter()
    with Meter() as meter:
        held = load(folder)
        if what == "export":
            with open_pretrained(folder) as pretrained:
                model = pretrained.model
            out = folder.with_name("out")
            read = lambda part: held[part.name].view(part.shape)  # noqa: E731
            export(out, model, read, shard_bytes=500_000_000)
    results.put((meter.anonymous, meter.resident, time.perf_counter() - begun))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--shard-mb", type=int, default=250)
    arguments = parser.parse_args()
    model = model_of(arguments.gb)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        export(folder, model, lambda p: torch.randn(p.shape) * 0.02,
               shard_bytes=arguments.shard_mb * 1_000_000)  # fmt: skip
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        context = multiprocessing.get_context("spawn")
        for what in ("load", "export"):
            results = context.Queue()
            process = context.Process(target=way, args=(what, folder, results))
            process.start()
            anonymous, resident, seconds = results.get()
            process.join()
            print(json.dumps({
                "way": what, "checkpoint_bytes": size, "shard_mb": arguments.shard_mb,
                "anonymous_share": round(anonymous / size, 3),
                "resident_share": round(resident / size, 3), "seconds": round(seconds, 1),
            }))  # fmt: skip
            assert anonymous <= BOUND * size, f"{what}: {anonymous=} {size=}"


if __name__ == "__main__":
    main()

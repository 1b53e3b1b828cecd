"""What a checkpoint costs: a whole save, what of it are checksums and fsync, and what a step feels.

    write        the bytes of a shard to a file, nothing else
    fsync        the same, and returned when they are on the disk
    digests      the same with both digests taken beside the writing: a shard as weft writes it
    save         a whole checkpoint: shard, report, manifest, names, older ones pruned
    stall        what a training step waits for when the rest is done in the background

Random values; rounds are interleaved in another order each time; figures are medians of wall time.
"""

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from weft.bench import record
from weft.checkpoint.background import Snapshot
from weft.checkpoint.durable import sync_file
from weft.checkpoint.save import Piece, Progress, alone, save
from weft.checkpoint.shard import write_shard

TENSOR = 1 << 22  # elements: 16 MiB, an expert's matrix


def make_pieces(mib: float) -> list[Piece]:
    """Master weights and both moments, that many MiB of them."""
    draw = torch.Generator().manual_seed(0)
    count = max(1, round(mib * 2**20 / 4 / TENSOR / 3))
    return [
        Piece(
            kind=kind,
            name=f"layers.{number}.q",
            shape=(TENSOR,),
            start=0,
            stop=TENSOR,
            tensor=torch.randn(TENSOR, generator=draw),
        )
        for number in range(count)
        for kind in ("master", "mean", "square")
    ]


def write(path: Path, pieces: list[Piece], *, durable: bool) -> None:
    """The bytes of the pieces, and nothing about them."""
    with path.open("wb", buffering=0) as file:
        for piece in pieces:
            file.write(piece.tensor.view(torch.uint8).numpy().data)
    if durable:
        sync_file(path)


def variants(folder: Path, pieces: list[Piece]) -> Mapping[str, Callable[[int], object]]:
    """What is timed, by name."""
    tensors = {f"{piece.kind}/{piece.name}": piece.tensor for piece in pieces}
    snapshot = Snapshot()
    snapshot.take(pieces)  # its buffers are made once a run
    return {
        "write": lambda n: write(folder / f"a{n}", pieces, durable=False),
        "fsync": lambda n: write(folder / f"b{n}", pieces, durable=True),
        "digests": lambda n: write_shard(folder / f"c{n}", tensors),
        "save": lambda n: save(
            folder / f"d{n}", pieces, progress=Progress(step=1, config={}, data={}), writer=alone()
        ),
        "stall": lambda _: snapshot.take(pieces),
    }


def measure(folder: Path, pieces: list[Piece], rounds: int) -> Mapping[str, list[float]]:
    """Seconds of every variant, a round after the other."""
    timed = variants(folder, pieces)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):  # the first is a warm-up
        for name in random.Random(number).sample(list(timed), len(timed)):
            begun = time.perf_counter()
            timed[name](number)
            if number:
                seconds[name].append(time.perf_counter() - begun)
            for made in folder.iterdir():
                shutil.rmtree(made) if made.is_dir() else made.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=float, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="the disk to measure; default: temporary files")
    parser.add_argument("--json", type=Path, help="default: results/<machine>/checkpoint.jsonl")
    arguments = parser.parse_args()
    pieces = make_pieces(arguments.mib)
    size = sum(piece.tensor.nbytes for piece in pieces)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        seconds = measure(Path(scratch), pieces, arguments.rounds)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print(f"{size / 2**20:.0f} MiB, {arguments.rounds} rounds, {torch.get_num_threads()} thread(s)")
    for name, found in seconds.items():
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"  {name:<8} {medians[name]:6.2f} s   {spread}")
    shares = {
        "fsync": (medians["fsync"] - medians["write"]) / medians["save"],
        "digests": (medians["digests"] - medians["fsync"]) / medians["save"],
        "stall": medians["stall"] / medians["save"],
    }
    for name, share in shares.items():
        print(f"  {name:<8} {100 * share:5.1f} % of a save")
    device = torch.device("cpu")
    figures = {"mib": size / 2**20, "seconds": seconds, "shares": shares}
    results = Path(__file__).parent / "results" / record.name(device) / "checkpoint.jsonl"
    record.append(arguments.json or results, record.entry("checkpoint", device, figures))


if __name__ == "__main__":
    main()

"""What a checkpoint costs: a whole save, what of it are checksums and the disk, what a step feels.

    write        the bytes of a shard to a file, nothing else
    disk         the same, and returned when they are on the disk: what the disk itself takes
    shard        a shard as weft writes it: on the disk, and every byte in a checksum
    save         a whole checkpoint: shard, report, manifest, names, older ones pruned
    step         products of matrices on one thread, in place of a forward and a backward
    beside       the same step while the state is copied beside it, and the wait for that copy

The stall is what `beside` takes longer than `step`. Random values; rounds are interleaved in
another order each time; figures are medians of wall time, and CPU time beside them.
"""

import argparse
import random
import shutil
import statistics
import tempfile
import threading
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
STEP_SECONDS = 1.0  # little for a model with a state of a gibibyte on a processor
SIDE = 1024  # of a product's matrices: they stay in the cache, as a layer's would not


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


def make_step(seconds: float) -> Callable[[], None]:
    """Work for one thread that takes about so long."""
    one, other, product = (torch.randn(SIDE, SIDE) for _ in range(3))
    torch.mm(one, other, out=product)
    begun = time.perf_counter()
    torch.mm(one, other, out=product)
    count = max(1, round(seconds / (time.perf_counter() - begun)))

    def step() -> None:
        for _ in range(count):
            torch.mm(one, other, out=product)

    return step


def variants(folder: Path, pieces: list[Piece]) -> Mapping[str, Callable[[int], object]]:
    """What is timed, by name."""
    tensors = {f"{piece.kind}/{piece.name}": piece.tensor for piece in pieces}
    step, snapshot = make_step(STEP_SECONDS), Snapshot()
    snapshot.begin(pieces)()  # its buffers are made once a run

    def beside(_: int) -> None:
        writer = threading.Thread(target=snapshot.begin(pieces))
        writer.start()
        step()
        snapshot.hold()
        writer.join()

    return {
        "write": lambda n: write(folder / f"a{n}", pieces, durable=False),
        "disk": lambda n: write(folder / f"b{n}", pieces, durable=True),
        "shard": lambda n: write_shard(folder / f"c{n}", tensors),
        "save": lambda n: save(
            folder / f"d{n}", pieces, progress=Progress(step=1, config={}, data={}), writer=alone()
        ),
        "step": lambda _: step(),
        "beside": beside,
    }


def measure(
    folder: Path, pieces: list[Piece], rounds: int
) -> tuple[Mapping[str, list[float]], Mapping[str, list[float]]]:
    """Wall and CPU seconds of every variant, a round after the other."""
    timed = variants(folder, pieces)
    wall: dict[str, list[float]] = {name: [] for name in timed}
    cpu: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):  # the first is a warm-up
        for name in random.Random(number).sample(list(timed), len(timed)):
            begun, spent = time.perf_counter(), time.process_time()
            timed[name](number)
            if number:
                wall[name].append(time.perf_counter() - begun)
                cpu[name].append(time.process_time() - spent)
            for made in folder.iterdir():
                shutil.rmtree(made) if made.is_dir() else made.unlink()
    return wall, cpu


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
        wall, cpu = measure(Path(scratch), pieces, arguments.rounds)
    medians = {name: statistics.median(found) for name, found in wall.items()}
    print(f"{size / 2**20:.0f} MiB, {arguments.rounds} rounds, {torch.get_num_threads()} thread(s)")
    for name, found in wall.items():
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(
            f"  {name:<10} {medians[name]:6.2f} s   {spread}   "
            f"{statistics.median(cpu[name]):.2f} s of CPU"
        )
    shares = {
        "disk": (medians["disk"] - medians["write"]) / medians["save"],
        "checksums": (medians["shard"] - medians["disk"]) / medians["save"],
        "the rest": (medians["save"] - medians["shard"]) / medians["save"],
        "stall": (medians["beside"] - medians["step"]) / medians["save"],
    }
    for name, share in shares.items():
        print(f"  {name:<10} {100 * share:5.1f} % of a save")
    device = torch.device("cpu")
    figures = {"mib": size / 2**20, "seconds": wall, "cpu_seconds": cpu, "shares": shares}
    results = Path(__file__).parent / "results" / record.name(device) / "checkpoint.jsonl"
    record.append(arguments.json or results, record.entry("checkpoint", device, figures))


if __name__ == "__main__":
    main()

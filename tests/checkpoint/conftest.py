"""A small run to save: tensors, how ranks cut them, and ranks that are threads."""

import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from weft.checkpoint.load import Checkpoint
from weft.checkpoint.save import Piece, Progress, Writer, alone, no_fail, save

Tensors = Mapping[tuple[str, str], Tensor]

SHAPES = {
    "embed": (13, 4),
    "norm": (4,),
    "layers.0.experts.0.gate": (6, 4),
    "layers.0.experts.0.down": (4, 6),
    "layers.0.experts.1.gate": (6, 4),
    "layers.0.experts.1.down": (4, 6),
    "layers.1.experts.0.gate": (6, 4),
}


def make_tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    """Master weights and both moments of every parameter, and one tensor of state."""
    random = torch.Generator().manual_seed(seed)
    tensors = {
        (kind, name): torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
        for name, shape in SHAPES.items()
        for kind in ("master", "mean", "square")
    }
    tensors["state", "layers.0.router_bias"] = torch.arange(4)
    return tensors


def cut(tensors: Tensors, ranks: int, cuts: Callable[[int], Sequence[int]]) -> list[list[Piece]]:
    """The pieces of each rank: every tensor cut at `cuts(numel)`, the pieces dealt round."""
    dealt: list[list[Piece]] = [[] for _ in range(ranks)]
    number = 0
    for (kind, name), tensor in tensors.items():
        flat = tensor.reshape(-1)
        bounds = sorted({0, flat.numel(), *(c for c in cuts(flat.numel()) if 0 < c < flat.numel())})
        for start, stop in pairwise(bounds):
            piece = Piece(
                kind=kind,
                name=name,
                shape=tuple(tensor.shape),
                start=start,
                stop=stop,
                tensor=flat[start:stop],
            )
            dealt[number % ranks].append(piece)
            number += 1
    return dealt


def whole(tensors: Tensors) -> list[Piece]:
    """The pieces of a run with one rank."""
    return cut(tensors, 1, lambda _: ())[0]


def progress(step: int) -> Progress:
    return Progress(step=step, config={"optim": {"lr": 3e-4}}, data={"step": step})


def save_alone(run_dir: Path, tensors: Tensors, step: int, **options) -> Path:
    return save(run_dir, whole(tensors), progress=progress(step), writer=alone(), **options)


def save_together(
    run_dir: Path,
    dealt: Sequence[Sequence[Piece]],
    step: int,
    fail_point: Callable[[str], None] = no_fail,
) -> list[Path | Exception]:
    """Saves from as many threads as there are ranks; returns what each returned or raised."""
    barrier = threading.Barrier(len(dealt), timeout=20)
    outcome: list[Path | Exception] = [RuntimeError("not started")] * len(dealt)

    def run(rank: int) -> None:
        writer = Writer(rank=rank, num_ranks=len(dealt), barrier=lambda: barrier.wait() and None)
        try:
            outcome[rank] = save(
                run_dir,
                dealt[rank],
                progress=progress(step),
                writer=writer,
                fail_point=fail_point,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            outcome[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(dealt))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def read_all(folder: Path) -> dict[tuple[str, str], Tensor]:
    """Every tensor of a checkpoint, verified, in its shape."""
    with Checkpoint.open(folder) as checkpoint:
        return {
            (kind, name): checkpoint.read(kind, name).reshape(checkpoint.shape(kind, name))
            for kind in ("master", "mean", "square", "state")
            for name in checkpoint.names(kind)
        }


def equal(first: Tensors, second: Tensors) -> bool:
    """Whether both hold the same tensors with the same bits."""
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key])
        for key in first
    )

"""R13: a checkpoint of any layout goes on in any other: the same bits, the same next loss.

Every ordered pair of eight layouts, in one process: train a little, save through files, load into
the other layout, gather what its ranks have, take one more step. In float64, where rounding cannot
hide a mistake.
"""

from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from weft.checkpoint.format import Entry
from weft.checkpoint.load import Checkpoint
from weft.checkpoint.save import Piece, Progress, save_shards
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.runtime.executor import run_together
from weft.testing import models
from weft.testing.agreement import Stack, Work, gather_state, stack, train_step
from weft.testing.chaos.result import Result, Size
from weft.trainer.recover import load_state, pieces_of

LAYOUTS: Mapping[str, Layout] = {
    "1": Layout(),
    "dp2": Layout(dp=2),
    "sp2": Layout(sp=2),
    "dp2 ep2": Layout(dp=2, ep=2),
    "sp2 ep2": Layout(sp=2, ep=2),
    "dp4 ep2": Layout(dp=4, ep=2),
    "sp2 dp2 ep4": Layout(sp=2, dp=2, ep=4),
    "dp4": Layout(dp=4),
}
STEPS = 2
BOUND = 1e-8  # relative, of the next loss
MODEL = models.deepseek_like()  # dense layers, shared and routed experts
WORK = Work(batches=partial(models.batches, MODEL), steps=STEPS)


def check(size: Size) -> Result:
    """All ordered pairs, the small size too: they take seconds."""
    faults: list[str] = []
    saved = {name: _trained(size.folder, layout, name) for name, layout in LAYOUTS.items()}
    pairs = list(product(LAYOUTS, LAYOUTS))
    for source, target in pairs:
        folder, state, loss = saved[source]
        ranks = _loaded(folder, LAYOUTS[target])
        faults += [f"{source} to {target}: {text}" for text in _unequal(_state(ranks), state)]
        found = float(train_step(ranks, WORK, STEPS + 1)[0])
        if abs(found - loss) > BOUND * abs(loss):
            faults.append(f"{source} to {target}: next loss {found!r}, expected {loss!r}")
    return Result(
        promise="R13 any layout goes on in any other",
        counts={"ordered pairs": len(pairs), "layouts": len(LAYOUTS)},
        faults=faults,
        control=_control(size.folder, saved["sp2 ep2"]),
    )


def _stack(layout: Layout) -> Stack:
    return stack(partial(models.plan, MODEL), layout, bodies=reference_bodies())


def _trained(folder: Path, layout: Layout, name: str) -> tuple[Path, Mapping[str, Tensor], float]:
    """A checkpoint after two steps, what is in it, and the loss of the step that follows."""
    ranks = _stack(layout)
    for step in range(1, STEPS + 1):
        train_step(ranks, WORK, step)
    for stage in ranks.stages:
        for key, tensor in stage.state.statics.items():
            if key.startswith("state:"):  # as if they had been learnt
                tensor.copy_(torch.arange(tensor.numel()) * 1e-3)
    parts = [
        partial(list, pieces_of(stage.state, leads=rank == 0))
        for rank, stage in enumerate(ranks.stages)
    ]
    progress = Progress(step=STEPS, config={}, data={})
    made = save_shards(folder / name.replace(" ", "-"), parts, progress=progress)
    state = {key: tensor.clone() for key, tensor in _state(ranks).items()}
    return made, state, float(train_step(ranks, WORK, STEPS + 1)[0])


def _loaded(folder: Path, layout: Layout) -> Stack:
    """The ranks of a layout with what a checkpoint holds."""
    ranks = _stack(layout)
    with Checkpoint.open(folder) as checkpoint:
        for stage in ranks.stages:
            load_state(stage.state, checkpoint)
    gathers = [stage.gathers for stage in ranks.stages]
    run_together(gathers, [{} for _ in gathers], ranks.world.pending)
    return ranks


def _state(ranks: Stack) -> Mapping[str, Tensor]:
    """Weights, moments and biases of all ranks, each tensor put together."""
    biases = {
        key: tensor
        for key, tensor in ranks.stages[0].state.statics.items()
        if key.startswith("state:")
    }
    return {**gather_state(ranks.stages), **biases}


def _unequal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    if found.keys() != expected.keys():
        return [f"other tensors: {sorted(found.keys() ^ expected.keys())[:3]}"]
    return [key for key, tensor in expected.items() if not torch.equal(found[key], tensor)]


def _control(folder: Path, saved: tuple[Path, Mapping[str, Tensor], float]) -> str:
    """Two experts that have changed places, in a checkpoint without another fault."""
    source, state, loss = saved
    swapped = _swap(source, folder / "swapped")
    ranks = _loaded(swapped, LAYOUTS["dp2 ep2"])
    seen = _unequal(_state(ranks), state)
    moved = abs(float(train_step(ranks, WORK, STEPS + 1)[0]) - loss) > BOUND * abs(loss)
    return "a swapped expert was found" if seen and moved else ""


def _swap(source: Path, run_dir: Path) -> Path:
    first, second = "layers.1.experts.0.", "layers.1.experts.1."
    with Checkpoint.open(source) as checkpoint:
        pieces = []
        for entry in checkpoint.manifest.entries:
            other = entry.name.replace(first, "?").replace(second, first).replace("?", second)
            tensor = checkpoint.read(entry.kind, other, entry.start, entry.stop)
            pieces.append(_piece(entry, tensor))
        progress = Progress(step=STEPS, config={}, data={})
        return save_shards(run_dir, [lambda: pieces], progress=progress)


def _piece(entry: Entry, tensor: Tensor) -> Piece:
    return Piece(
        kind=entry.kind,
        name=entry.name,
        shape=entry.shape,
        start=entry.start,
        stop=entry.stop,
        tensor=tensor,
    )

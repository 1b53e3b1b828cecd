"""All ranks of a measurement: one in this process, more as children that end together."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch.multiprocessing.spawn import spawn

from weft.bench import block, step
from weft.bench.ceilings import Ceilings, stored
from weft.bench.record import append, entry
from weft.bench.rig import rigged
from weft.config.load import dump
from weft.config.run import RunConfig
from weft.runtime.backends import pick_device
from weft.runtime.state import precision
from weft.trainer.session import Place

Figures = dict[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What to measure, and where the first rank says so and appends its record.

    `what` is a step, or a block of a layer (`bench.block`).
    """

    what: str
    config: RunConfig
    steps: int
    documents: int
    file: Path | None
    say: Callable[[str], None]


def measure_here(order: Order) -> None:
    """Measures with as many processes as the layout has ranks; the first one prints."""
    world = order.config.parallel.ranks
    if world == 1:
        measure_rank(0, 1, None, order)
        return
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        meeting = f"file://{folder}/meeting"
        spawn(measure_rank, (world, meeting, order), nprocs=world)


def measure_rank(
    rank: int, world: int, meeting: str | None, order: Order, *, local_rank: int | None = None
) -> None:
    """Measures one rank; the first prints and appends."""
    device = pick_device(order.config.train.device, rank if local_rank is None else local_rank)
    place = Place(rank=rank, world=world, device=device, meeting=meeting, neighbours=world)
    ceilings = stored(device, precision(order.config.train.precision).act)
    measure = _measure_step if order.what == "step" else _measure_block
    text, figures = measure(order, place, ceilings)
    if rank:
        return
    order.say(text)
    if order.file is not None:
        recipe = {"recipe": order.config.name, "config": dump(order.config)}
        append(order.file, entry(order.what, device, {**recipe, **figures}))


def _measure_step(order: Order, place: Place, ceilings: Ceilings) -> tuple[str, Figures]:
    report = step.measure(
        order.config, place, steps=order.steps, ceilings=ceilings, documents=order.documents
    )
    return step.render(report), step.record(report)


def _measure_block(order: Order, place: Place, ceilings: Ceilings) -> tuple[str, Figures]:
    with rigged(order.config, place, documents=order.documents) as rig:
        found = block.measure(rig, order.what, ceilings, repeats=order.steps)
    return block.render(found), block.record(found)

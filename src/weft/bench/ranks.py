"""All ranks of a measurement: one in this process, more as children that end together."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch.multiprocessing.spawn import spawn

from weft.bench import block, calibrate, record, step
from weft.bench.ceilings import Ceilings, stored
from weft.bench.record import append, entry
from weft.bench.rig import rigged
from weft.bench.world import start
from weft.config.load import dump
from weft.config.run import RunConfig
from weft.planner.calibration import machine_text
from weft.planner.machine import Machine, machine, sources
from weft.runtime import backends
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
    """Measures with as many processes as the layout has ranks; the first one prints.

    Raises:
        ConfigError: half a layer of a recipe whose policy is a layer's.
    """
    if order.what in block.BLOCKS:
        block.named(order.config.overlap.remat)  # before processes start
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
    device = backends.pick_device(
        order.config.train.device, rank if local_rank is None else local_rank
    )
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Which machine to measure with how many ranks, and where its file goes.

    `known` is the machine whose numbers on paper are kept; none keeps nothing.
    """

    known: str | None
    device: str
    file: Path
    say: Callable[[str], None]


def calibrate_here(order: Calibration, world: int) -> None:
    """Measures this machine with a process for each rank; the first one writes its file."""
    start(calibrate_rank, order, world=world, device=order.device)


def calibrate_rank(place: Place, order: Calibration) -> None:
    """Measures one rank; the first writes the file, as soon as there is something to write."""
    say = order.say if place.rank == 0 else _silent
    base = machine(order.known) if order.known else None
    for found in calibrate.calibrate(place, calibrate.Order(base=base, say=say)):
        if place.rank == 0:
            _write(found, place, order)


def _write(found: Machine, place: Place, order: Calibration) -> None:
    """The machine as it is known, in place of what the file had."""
    facts = record.machine(place.device)
    run = (
        f"weft bench calibrate, {record.today()}, {place.world} x {facts['name']}, "
        f"torch {facts['torch']}, commit {record.commit()}"
    )
    known = sources(order.known) if order.known else {}
    source = calibrate.sources_of(found, known, run)
    fresh = order.file.with_suffix(".part")
    fresh.write_text(machine_text(found, source=source, run=run), encoding="utf-8")
    fresh.replace(order.file)
    measured = found.measured
    order.say(
        f"{order.file}: {len(measured.products)} shapes of products, {len(measured.passes)} "
        f"passes, {len(measured.issue)} bodies issued, {len(measured.messages)} messages"
    )


def _silent(_text: str) -> None:
    return

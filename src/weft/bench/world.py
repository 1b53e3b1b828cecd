"""Ranks that are started once and measure one recipe after another.

    start    a process for each rank, met and prepared; a rank alone stays in this one
    Wires    the wire of a recipe, kept while the next one lays the same ranks out alike
    fresh    what the last recipe held is given back

Opening process groups takes longer than many a measurement: about a third of a second each.
"""

import gc
import tempfile
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from weft.comm.transport import Transport
from weft.config.run import RunConfig
from weft.runtime import backends
from weft.trainer.session import Place, check_transport, join, open_transport

Errand = TypeVar("Errand")
Run = Callable[[Place, Errand], None]


def start(run: Run[Errand], errand: Errand, *, world: int, device: str) -> None:
    """Sends every rank on the same errand; returns when all have ended.

    Raises:
        ConfigError: there are fewer devices than ranks.
    """
    for rank in range(world):
        backends.pick_device(device, rank)  # refused before anything starts
    if world == 1:
        _rank(0, run, errand, 1, device, None)
        return
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        spawn(_rank, (run, errand, world, device, f"file://{folder}/meeting"), nprocs=world)


def _rank(
    rank: int, run: Run[Errand], errand: Errand, world: int, device: str, meeting: str | None
) -> None:
    where = backends.pick_device(device, rank)
    backends.prepare(where, threads=None, neighbours=world)
    place = Place(rank=rank, world=world, device=where, meeting=meeting, neighbours=world)
    if world == 1:
        run(place, errand)
        return
    join(place)
    dist.all_reduce(torch.zeros(1))  # a rank that left now would fail others that are still meeting
    run(place, errand)
    dist.destroy_process_group()


class Wires:
    """The wire of the recipe that was measured last, of a rank that has joined the others."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._laid_out: object = None
        self._open: Transport | None = None

    def of(self, config: RunConfig) -> Transport:
        """The wire of a recipe: the open one if it lays its ranks out alike.

        Raises:
            ConfigError: it asks for a wire that these devices do not have.
        """
        parallel, wanted = config.parallel, config.kernels.transport
        axes = (parallel.pp, parallel.dp, parallel.sp, parallel.ep, parallel.node)
        laid_out = (*axes, parallel.chunks > 1, wanted)
        if self._open is None or laid_out != self._laid_out:
            if self._place.world > 1:
                check_transport(wanted, self._place.device)
            self.close()
            self._open, self._laid_out = open_transport(config, self._place), laid_out
        return self._open

    def close(self) -> None:
        """Closes the open one, if any."""
        if self._open is not None:
            self._open.close()
        self._open = None


def fresh(device: torch.device) -> None:
    """Gives back the memory of what ran before; peaks count from here."""
    gc.collect()  # a rig's closures hold its tensors in a ring
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def settle(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""What a recipe leaves to the machine, decided by the first rank for all of them.

A job may have accelerators of two kinds; each rank would choose for its own.
"""

import torch

from weft.comm.transport import Transport
from weft.config.run import RunConfig
from weft.parallel.layout import Dispatch
from weft.planner import dispatch
from weft.planner.cost import rates
from weft.planner.machine import nearest
from weft.runtime.backends import accelerator

_WAYS = tuple(Dispatch)


def settle(
    config: RunConfig, transport: Transport, device: torch.device, *, rank: int
) -> RunConfig:
    """The recipe as it is run; the first rank prints why.

    Communicates:
        One all-reduce of 8 bytes where the recipe leaves something open.
    """
    if config.parallel.dispatch != dispatch.AUTO:
        return config
    found = rates(nearest(accelerator(device)), attention=config.kernels.attention)
    settled = dispatch.settle(config, found)
    own = _WAYS.index(Dispatch(settled.config.parallel.dispatch)) if rank == 0 else 0
    first = torch.tensor([float(own)], dtype=torch.float64, device=device)
    agreed = int(transport.all_reduce(first, axis="world", label="dispatch").wait())
    if rank == 0 and settled.ways:
        print(dispatch.text(settled), flush=True)
    return dispatch.taking(config, _WAYS[agreed])

"""Peer memory beside NCCL: whether a run has it, which collectives take it, and what else is said.

Recipes ask for it by `kernels.transport`:

    nccl         nothing
    auto         by the tables of measured sizes (`comm.crossover`)
    symmetric    everything but messages
"""

import os
import sys
from typing import Literal

import torch

from weft.comm.crossover import everything, measured
from weft.comm.kernel import MOST_BYTES, Bodies
from weft.comm.reach import open_channels
from weft.comm.transport import Transport
from weft.comm.transports.nccl import NcclTransport
from weft.comm.transports.symmetric import SymmetricTransport
from weft.errors import CommunicationError, ConfigError
from weft.runtime.backends import gradient_sums

Wanted = Literal["auto", "nccl", "symmetric"]


def beside(
    nccl: NcclTransport,
    wanted: Wanted,
    device: torch.device,
    *,
    timeout_seconds: float,
    kernels: Bodies | None = None,
    most: int = MOST_BYTES,
) -> Transport:
    """The transport of a rank on a GPU, with kernels for calls of `most` bytes a block where there
    are such.

    Raises:
        ConfigError: peer memory is asked for and some group cannot have it.
    """
    rule = everything() if wanted == "symmetric" else measured()
    if wanted == "nccl" or not (rule.copies or (kernels is not None and rule.kernels)):
        return nccl
    reach = open_channels(
        nccl.groups, device, seconds=timeout_seconds, tell=give_up, bodies=kernels, most=most
    )
    if wanted == "symmetric" and reach.reasons:
        (axis, lane), why = next(iter(reach.reasons.items()))
        raise ConfigError(
            f"kernels.transport = 'symmetric': the group of axis {axis}, lane {lane} cannot have "
            f"it: {why}; try 'auto'"
        )
    return SymmetricTransport(
        nccl,
        reach.channels,
        rule=rule,
        sums=gradient_sums(device),
        kernels=reach.kernels,
        reasons=reach.reasons,
        close=reach.close,
    )


def give_up(error: CommunicationError) -> None:
    """Ends this process with an error: its device waits for what never comes, and a step that goes
    on without it must not be saved.
    """
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    sys.stderr.flush()
    os._exit(1)

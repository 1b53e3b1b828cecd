"""The wire of NVIDIA GPUs: torch.distributed over NCCL, issued on the current stream.

Nothing here waits on the host. A call is ordered on the stream on which it is issued, so its
handle is finished at once; the executor, which owns the communication streams, orders behind it
what reads the result or reuses the memory of the argument. How much of it is exposed is a matter
of events on those streams and not of host time.
"""

from collections.abc import Mapping
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from weft.comm.call import Call, Collective, sum_in_rank_order
from weft.comm.handle import Finished, Handle
from weft.comm.mesh import Mesh, memberships
from weft.comm.transport import LANES, LINKS, Transport
from weft.comm.wire import GroupKey, close_groups, move, open_groups, scatter_sum


@final
class NcclTransport(Transport):
    """The groups of this process over NCCL on one device, in an initialised default process group.

    Numerics: NCCL adds in the dtype of the argument, in an order that is fixed for a fixed
    topology, algorithm and number of channels: the same run gives the same bits, another machine
    or another number of ranks need not. The bits are not those of `stacked`, except for two ranks.
    """

    def __init__(
        self,
        mesh: Mesh,
        *,
        device: torch.device,
        timeout_seconds: float,
        lanes: tuple[str, ...] = LANES,
        links: tuple[str, ...] = LINKS,
    ) -> None:
        self._device = device
        self._groups = open_groups(
            mesh,
            backend="nccl",
            lanes=lanes,
            links=links,
            timeout_seconds=timeout_seconds,
            device=device,
        )
        self._members = memberships(mesh, dist.get_rank())

    @property
    def groups(self) -> Mapping[GroupKey, ProcessGroup]:
        """The process groups by (axis, lane)."""
        return self._groups

    def group_size(self, axis: str) -> int:
        return len(self._members[axis].ranks)

    def group_rank(self, axis: str) -> int:
        return self._members[axis].position

    def barrier(self) -> None:
        if self._groups:
            group = next(g for (axis, _), g in self._groups.items() if axis == "world")
            dist.barrier(group, device_ids=[self._device.index])
        torch.cuda.synchronize(self._device)

    def close(self) -> None:
        close_groups(self._groups)
        self._groups = {}

    def exposed_seconds(self) -> float:
        return 0.0

    def reset_exposed(self) -> None:
        return

    def describe(self) -> str:
        return "NCCL"

    def sums_on_arrival(self) -> bool:
        return False

    def post(self, call: Call, x: Tensor, out: Tensor) -> Handle:
        group = self._groups[call.axis, call.lane]
        match call.collective:
            case Collective.REDUCE_SCATTER:
                scatter_sum(out, x, group)
            case Collective.ALL_TO_ALL_SUM:
                sent = x.to(call.dtype)
                terms = torch.empty_like(sent)
                dist.all_to_all_single(terms, sent, group=group)
                sum_in_rank_order(terms.view(-1, *out.shape), out)
            case Collective.ALL_REDUCE:
                dist.all_reduce(out.copy_(x), group=group)
            case _:
                move(call, x, out, group, asynchronous=False)
        return Finished(out)

"""What the two real wires share: their process groups, and the collectives that only move data.

A process group exists for each pair of a lane and a group of the mesh (on `pp`, where messages go,
of a link and a group), made in the same order on
every rank and used once at once: a wrong address or a missing rank shows at the start, while
memory is free, and not inside a step.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from weft.comm.call import Call, Collective
from weft.comm.mesh import Group, Mesh, groups
from weft.errors import CommunicationError

GroupKey = tuple[str, str]  # axis, lane


def open_groups(
    mesh: Mesh,
    *,
    backend: str,
    lanes: tuple[str, ...],
    links: tuple[str, ...],
    timeout_seconds: float,
    device: torch.device,
) -> Mapping[GroupKey, ProcessGroup]:
    """The process groups of this rank by (axis, lane), each proved by one sum; none for one rank.

    Communicates: one all-reduce of 8 bytes a group. Every rank of the world takes part.

    Raises:
        CommunicationError: the world is not the mesh's, or a group does not count its own members.
    """
    if dist.get_world_size() != mesh.world:
        raise CommunicationError(
            f"{dist.get_world_size()} ranks are running, the layout pp x dp x sp = "
            f"{mesh.pp} x {mesh.dp} x {mesh.sp} needs {mesh.world}; "
            "start that many, or change the layout"
        )
    opened: dict[GroupKey, ProcessGroup] = {}
    keys = [(axis, lane) for lane in lanes for axis in mesh.axes if axis != "pp"]
    for axis, lane in (*keys, *(("pp", link) for link in links)):
        for ranks in _of_several(groups(mesh, axis)):
            # NOTE: every rank makes every group, also those of others: one order for all
            group = dist.new_group(
                list(ranks), timeout=timedelta(seconds=timeout_seconds), backend=backend
            )
            if dist.get_rank() in ranks:
                assert isinstance(group, ProcessGroup), f"{ranks=} {group=}"
                opened[axis, lane] = group
                _prove(group, len(ranks), device)
    return opened


def close_groups(opened: Mapping[GroupKey, ProcessGroup]) -> None:
    """Destroys the process groups of this rank, and only those."""
    for group in opened.values():
        dist.destroy_process_group(group)


def move(
    call: Call, x: Tensor, out: Tensor, group: ProcessGroup, *, asynchronous: bool
) -> Work | None:
    """Starts what only moves data; the work, or None if the stream orders it."""
    match call.collective:
        case Collective.ALL_TO_ALL:
            return dist.all_to_all_single(out, x, group=group, async_op=asynchronous)
        case Collective.ALL_TO_ALL_ROWS:
            return dist.all_to_all_single(
                out, x, list(call.receive), list(call.send), group=group, async_op=asynchronous
            )
        case Collective.ALL_GATHER:
            return gather(out, x, group, asynchronous=asynchronous)
        case Collective.SEND if asynchronous:
            return dist.isend(x, group=group, group_dst=call.peer)
        case Collective.RECEIVE if asynchronous:
            return dist.irecv(out, group=group, group_src=call.peer)
        case Collective.SEND:
            dist.send(x, group=group, group_dst=call.peer)
            return None
        case Collective.RECEIVE:
            dist.recv(out, group=group, group_src=call.peer)
            return None
        case Collective.REDUCE_SCATTER | Collective.ALL_TO_ALL_SUM | Collective.ALL_REDUCE:
            raise AssertionError(f"{call} adds as well as moves")


def gather(out: Tensor, x: Tensor, group: ProcessGroup, *, asynchronous: bool) -> Work | None:
    """Starts an all-gather into one tensor."""
    return _renamed("all_gather_single", "all_gather_into_tensor")(
        out, x, group=group, async_op=asynchronous
    )


def scatter_sum(out: Tensor, x: Tensor, group: ProcessGroup) -> None:
    """Issues the wire's own reduce-scatter on the current stream."""
    _renamed("reduce_scatter_single", "reduce_scatter_tensor")(out, x, group=group)


def failure(call: Call, sequence: int, rank: int, cause: BaseException) -> CommunicationError:
    """The error for a collective that the wire gave up."""
    return CommunicationError(
        f"rank {rank}: {call}, call {sequence} of axis {call.axis} lane {call.lane}, failed: "
        f"{cause}; look for the first error of another rank, or raise the timeout"
    )


def _renamed(name: str, former: str) -> Callable[..., Work | None]:
    # torch 2.13 warns about the former names, torch 2.11 has only those
    return getattr(dist, name, None) or getattr(dist, former)


def _of_several(all_groups: tuple[Group, ...]) -> tuple[Group, ...]:
    return tuple(ranks for ranks in all_groups if len(ranks) > 1)


def _prove(group: ProcessGroup, size: int, device: torch.device) -> None:
    count = torch.ones(1, dtype=torch.int64, device=device)
    dist.all_reduce(count, group=group)
    if int(count) != size:
        raise CommunicationError(
            f"a group of {size} ranks counted {int(count)} members; "
            "check that no two jobs share an address"
        )

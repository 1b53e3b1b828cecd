"""Which groups reach each other's memory, and the channels of those that do.

Every member asks the same of every other, so all of a group come to one answer. What stands in the
way is said, never passed over: a group without channels keeps its other wire.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from weft.comm.driver import obstacle, open_driver
from weft.comm.exchange import Channel
from weft.comm.kernel import MOST_BYTES, Bodies, KernelChannel
from weft.comm.symmetric import CudaPeers, map_arenas, slot_bytes_of
from weft.comm.watch import Watch
from weft.comm.wire import GroupKey
from weft.errors import CommunicationError

ARENA_BYTES = 1 << 27  # of a channel, at most; two members take half of it
_SHORT = ("world", "ends")  # axes on which only short sums travel over peer memory
# Of their channels: with flags 0.9 MiB of two members, 1.2 of eight; torch takes 2 MiB for either.
_SHORT_BYTES = 1 << 19
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # one a running host


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """The channels of a rank, why other groups have none, and how to end."""

    channels: Mapping[GroupKey, Channel]
    kernels: Mapping[GroupKey, KernelChannel]
    reasons: Mapping[GroupKey, str]
    close: Callable[[], None]


def open_channels(
    groups: Mapping[GroupKey, ProcessGroup],
    device: torch.device,
    *,
    seconds: float,
    tell: Callable[[CommunicationError], None],
    bodies: Bodies | None = None,
    most: int = MOST_BYTES,
) -> Reach:
    """A channel for each group of collectives whose members reach each other, and one for calls of
    `most` bytes a block where there are kernels for them.

    Communicates: an all-gather of 24 bytes a group, and for each channel a rendezvous.
    """
    channels: dict[GroupKey, Channel] = {}
    kernels: dict[GroupKey, KernelChannel] = {}
    reasons: dict[GroupKey, str] = {}
    peers: list[CudaPeers] = []
    for key, group in groups.items():
        if key[0] == "pp":
            continue  # messages have no channel
        why = unreachable(members_of(group, device))
        if why is not None:
            reasons[key] = why
            continue
        arena_bytes = _SHORT_BYTES if key[0] in _SHORT else ARENA_BYTES
        memory = _memory(group, slot_bytes_of(arena_bytes, group.size()), device)
        channels[key] = Channel(memory, size=group.size(), position=group.rank())
        if bodies is not None:
            # the thread below is to speak first
            kernels[key] = KernelChannel(
                memory, memory.board(seconds=2 * seconds), bodies, most=most
            )
        peers.append(memory)
    watch = Watch(tuple(peers), rank=dist.get_rank(), seconds=seconds, tell=tell)
    return Reach(channels=channels, kernels=kernels, reasons=reasons, close=watch.close)


def _memory(group: ProcessGroup, slot_bytes: int, device: torch.device) -> CudaPeers:
    arenas = map_arenas(
        group,
        slot_bytes=slot_bytes,
        device=device,
        meet=lambda: dist.barrier(group, device_ids=[device.index]),
    )
    return CudaPeers(arenas, position=group.rank(), slot_bytes=slot_bytes, driver=open_driver())


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """What decides whether a rank can be reached: whether it can reach at all, its host, its
    device.
    """

    able: bool
    host: int
    device: int


def members_of(group: ProcessGroup, device: torch.device) -> tuple[Member, ...]:
    """Every member of a group as it sees itself."""
    own = torch.tensor(
        [obstacle(device) is None, _host(), device.index], dtype=torch.int64, device=device
    )
    all_of_them = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(all_of_them, own, group=group)
    return tuple(
        Member(able=bool(able), host=host, device=index)
        for able, host, index in (one.tolist() for one in all_of_them)
    )


def unreachable(
    members: tuple[Member, ...],
    reaches: Callable[[int, int], bool] = torch.cuda.can_device_access_peer,
) -> str | None:
    """Why the members of a group cannot have channels, or None."""
    if not all(member.able for member in members):
        return "a member has no symmetric memory: weft doctor says why"
    if len({member.host for member in members}) > 1:
        return "its members run on more than one host"
    devices = [member.device for member in members]
    if len(set(devices)) < len(devices):
        return "its members see their devices under the same number: let each see all of them"
    apart = [(a, b) for a in devices for b in devices if a != b and not reaches(a, b)]
    if apart:
        return f"device {apart[0][0]} does not reach the memory of device {apart[0][1]}"
    return None


def obstacle_here() -> str | None:
    """Why the devices that this process sees can have no channels between them, or None."""
    devices = range(torch.cuda.device_count())
    if len(devices) < 2:
        return f"it takes two CUDA devices, found {len(devices)}"
    why = obstacle(torch.device("cuda", 0))
    return why or unreachable(tuple(Member(able=True, host=0, device=i) for i in devices))


def _host() -> int:
    """A number that processes of one running host share."""
    return zlib.crc32(_BOOT.read_bytes()) if _BOOT.exists() else 0

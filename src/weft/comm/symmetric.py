"""Peer memory of GPUs of one host: an arena a channel, which the copy engines of peers push into.

    arena of a member    flags     2 n words, a line each: FULL and LANDED of every member
                         slots     n - 1 members, SLOTS each

The arenas of a channel are mapped once, at the start, in the same order on every rank. Copies and
flags are operations of the driver on two streams: the one on which a collective is issued pushes,
one of the channel's own takes out what lands. Torch's signal pad is never used.

A wait has no end of its own on the device: it is bounded by `Watch`, which looks from the host.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from weft.comm.driver import Driver, symmetric_memory
from weft.comm.exchange import SLOTS, Flag, PeerMemory, Queue
from weft.comm.watch import Awaited, Flight
from weft.errors import CommunicationError

_LINE = 128  # bytes of a cache line: a flag has its own
_MASK = 0xFFFFFFFF  # flags are 32 bits wide
# A copy takes 3 to 6 us to start and 42 us for 16 MiB at 400 GB/s; what lands last is not hidden.
_LARGEST = 1 << 24
_PAGE = 4096  # slots begin and end on pages
_FARTHEST = (1 << 31) - 1  # how far ahead of an awaited epoch a flag may be


def slot_bytes_of(arena_bytes: int, size: int) -> int:
    """The bytes of a slot, of which an arena has `SLOTS` for each of the other members.

    Example:
        >>> [slot_bytes_of(2**26, size) >> 20 for size in (2, 3, 9)]
        [16, 16, 4]
    """
    most = min(arena_bytes // (SLOTS * (size - 1)), _LARGEST)
    return max(most // _PAGE, 1) * _PAGE


@final
class CudaPeers(PeerMemory):
    """One member's reach into the arenas of a group on GPUs of one host."""

    def __init__(
        self, arenas: list[Tensor], *, position: int, slot_bytes: int, driver: Driver
    ) -> None:
        size = len(arenas)
        own = arenas[position]
        self._device = own.device
        self._driver = driver
        self._slot_bytes = slot_bytes
        self._local = {
            peer: _slots(own, peer, position, size, slot_bytes)
            for peer in range(size)
            if peer != position
        }
        self._remote = {
            peer: _slots(arenas[peer], position, peer, size, slot_bytes) for peer in self._local
        }
        self._raised = {
            (peer, flag): arenas[peer].data_ptr() + _flag_at(position, flag)
            for peer in self._local
            for flag in Flag
        }
        self._awaited = {
            (peer, flag): own.data_ptr() + _flag_at(peer, flag)
            for peer in self._local
            for flag in Flag
        }
        self._flags = own[: _flags_bytes(size)].view(torch.int32)
        self._caller = torch.cuda.current_stream(self._device)
        self._land: torch.cuda.Stream | None = None  # a channel that nobody uses needs no stream
        self._queues = (self._caller, self._caller)
        self._numbers = (0, 0)  # of the streams, as the driver knows them
        self._forked, self._landed = torch.cuda.Event(), torch.cuda.Event()
        self._spare: list[torch.cuda.Event] = []
        self._calls = 0
        self._flight = Flight(name="nothing", sequence=0)
        self._flights: deque[tuple[Flight, torch.cuda.Event]] = deque()

    @property
    def slot_bytes(self) -> int:
        return self._slot_bytes

    def local(self, peer: int, slot: int) -> Tensor:
        return self._local[peer][slot]

    def remote(self, peer: int, slot: int) -> Tensor:
        return self._remote[peer][slot]

    def fork(self, name: object) -> None:
        """Takes the current stream as the queue of pushes; behind the last call if that was on
        another one.
        """
        self._drop_finished()
        caller = torch.cuda.current_stream(self._device)
        if caller != self._caller and self._flights:
            caller.wait_event(self._flights[-1][1])
        self._caller = caller
        if self._land is None:
            self._land = torch.cuda.Stream(self._device, priority=-1)
        self._forked.record(caller)
        self._land.wait_event(self._forked)
        self._queues = (caller, self._land)
        self._numbers = (caller.cuda_stream, self._land.cuda_stream)
        self._flight = Flight(name=name, sequence=self._calls)
        self._calls += 1

    def join(self) -> None:
        self._landed.record(self._queues[Queue.LAND])
        self._caller.wait_event(self._landed)
        done = self._spare.pop() if self._spare else torch.cuda.Event()
        done.record(self._caller)
        self._flight.done = done
        self._flights.append((self._flight, done))

    def copy(
        self, queue: Queue, target: Tensor, source: Tensor, *, to: int, at: int, size: int
    ) -> None:
        there, here = target.data_ptr() + to, source.data_ptr() + at
        if there != here:  # an all-gather in place
            self._driver.copy(self._numbers[queue], there, here, size)

    def run(self, queue: Queue, body: Callable[[], object]) -> None:
        torch.cuda.set_stream(self._queues[queue])
        try:
            body()
        finally:
            torch.cuda.set_stream(self._caller)

    def raise_flag(self, queue: Queue, peer: int, flag: Flag, epoch: int) -> None:
        self._driver.write(self._numbers[queue], self._raised[peer, flag], epoch & _MASK)

    def await_flag(self, queue: Queue, peer: int, flag: Flag, epoch: int) -> None:
        self._flight.awaited.append(Awaited(peer, flag, epoch))
        self._driver.wait(self._numbers[queue], self._awaited[peer, flag], epoch & _MASK)

    def oldest(self) -> Flight | None:
        """The first call that was not done when the last one began."""
        try:
            return self._flights[0][0]
        except IndexError:  # between a look and another, the caller may drop the last
            return None

    def standing(self) -> Mapping[tuple[int, Flag], int]:
        """Where the flags of the others stand, read beside whatever holds the streams up."""
        with torch.cuda.stream(torch.cuda.Stream(self._device)):
            words = self._flags.cpu()
        return {
            (peer, flag): int(words[_flag_at(peer, flag) // words.itemsize]) & _MASK
            for peer, flag in self._awaited
        }

    def let_go(self) -> None:
        """Raises every flag here as far as it goes, so that the streams end: for a rank that gives
        up, whose data are worth nothing from here on.
        """
        rescue = torch.cuda.Stream(self._device).cuda_stream
        for (peer, flag), address in self._awaited.items():
            epoch = self.standing()[peer, flag] + _FARTHEST
            self._driver.write(rescue, address, epoch & _MASK)

    def _drop_finished(self) -> None:
        while self._flights and self._flights[0][1].query():
            self._spare.append(self._flights.popleft()[1])


def _flag_at(member: int, flag: Flag) -> int:
    """The byte of a member's flag in an arena."""
    return (len(Flag) * member + flag) * _LINE


def _flags_bytes(size: int) -> int:
    return -(-_flag_at(size, Flag.FULL) // _PAGE) * _PAGE


def arena_bytes_of(slot_bytes: int, size: int) -> int:
    """The bytes of an arena with its flags."""
    return _flags_bytes(size) + (size - 1) * SLOTS * slot_bytes


def _slots(arena: Tensor, writer: int, owner: int, size: int, slot_bytes: int) -> list[Tensor]:
    """The slots of one writer in the arena of an owner, which has none itself."""
    row = (writer - owner - 1) % size
    first = _flags_bytes(size) + row * SLOTS * slot_bytes
    return list(arena[first : first + SLOTS * slot_bytes].view(SLOTS, slot_bytes))


def map_arenas(
    group: ProcessGroup, *, slot_bytes: int, device: torch.device, meet: Callable[[], object]
) -> list[Tensor]:
    """The arenas of all members of a group, mapped here, their flags at zero.

    Communicates: a rendezvous of the group; then all its members `meet`, so that nobody raises a
    flag that is still to be zeroed.

    Raises:
        CommunicationError: the devices do not reach each other's memory.
    """
    size, own = group.size(), group.rank()
    num_bytes = arena_bytes_of(slot_bytes, size)
    torch_memory = symmetric_memory()
    try:
        arena = torch_memory.empty(num_bytes, dtype=torch.uint8, device=device)
        mapped = torch_memory.rendezvous(arena, group)
    except RuntimeError as error:
        raise CommunicationError(
            f"{size} members could not map {num_bytes} bytes of each other: {error}; "
            "try kernels.transport = 'nccl'"
        ) from error
    arena[: _flags_bytes(size)].zero_()
    torch.cuda.synchronize(device)
    meet()
    torch.cuda.synchronize(device)
    return [
        arena if peer == own else mapped.get_remote_tensor(peer, (num_bytes,), torch.uint8)
        for peer in range(size)
    ]

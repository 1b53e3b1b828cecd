"""Peer memory of GPUs of one host: an arena a channel, which the copy engines of peers push into.

    arena of a member    flags     words, a line each: of each member FULL, even and odd, LANDED,
                                   and two of each pair of programs of a kernel
                         slots     n - 1 members, SLOTS each
                         kernel    n - 1 members, two sets of slots each for its calls

The arenas of a channel are mapped once, at the start, in the same order on every rank. Copies and
flags are operations of the driver on three streams: the one on which a collective is issued, and
two of the channel's own for what goes beside it. Torch's signal pad is never used.

A wait has no end of its own on the device: it is bounded by `Watch`, which looks from the host.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from weft.comm.driver import Driver, symmetric_memory
from weft.comm.exchange import SLOTS, Flag, Mark, PeerMemory, Queue
from weft.comm.kernel import LINE, SHAPE, Board, kernel_slot_bytes
from weft.comm.route import Piece
from weft.comm.watch import Flight
from weft.errors import CommunicationError

_MASK = 0xFFFFFFFF  # flags are 32 bits wide
# A copy takes 3 to 6 us to start and 42 us for 16 MiB at 400 GB/s; what lands last is not hidden.
_LARGEST = 1 << 24
_PAGE = 4096  # slots begin and end on pages
_KERNEL_LINES = 2 * SHAPE.pairs  # full and landed
_LINES = Flag.KERNEL + _KERNEL_LINES  # a member has in an arena
_LOOKS = 2_000_000  # at a flag in a second, at most: half a microsecond each
_RECENT = 64  # calls that were kernels and can still be named
_FARTHEST = (1 << 31) - 1  # how far ahead of an awaited epoch a flag may be


def slot_bytes_of(arena_bytes: int, size: int) -> int:
    """The bytes of a slot, of which an arena has `SLOTS` for each of the other members.

    Example:
        >>> [slot_bytes_of(2**26, size) >> 20 for size in (2, 3, 9)]
        [16, 8, 2]
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
        self._landings = {peer: _addresses(slots) for peer, slots in self._local.items()}
        self._targets = {peer: _addresses(slots) for peer, slots in self._remote.items()}
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
        self._arenas, self._position = arenas, position
        self._failed: Tensor | None = None
        self._recent: deque[Flight] = deque(maxlen=_RECENT)
        caller = torch.cuda.current_stream(self._device)
        self._streams = [caller] * len(Queue)  # a channel that nobody uses needs none of its own
        self._numbers = [0] * len(Queue)  # of the streams, as the driver knows them
        self._points = [torch.cuda.Event() for _ in Queue]
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

    def begin(self, name: object) -> None:
        """Takes the current stream as the caller's; behind the last call if that was on another."""
        self._drop_finished()
        caller = torch.cuda.current_stream(self._device)
        if caller != self._streams[Queue.CALLER]:
            if self._flights:
                caller.wait_event(self._flights[-1][1])
            self._streams[Queue.CALLER] = caller
        self._numbers[Queue.CALLER] = caller.cuda_stream
        self._flight = Flight(name=name, sequence=self._calls)
        self._calls += 1

    def fork(self, *queues: Queue) -> None:
        if not self._numbers[Queue.LAND]:
            self._make_streams()
        point = self._points[Queue.CALLER]
        point.record(self._streams[Queue.CALLER])
        for queue in queues:
            self._streams[queue].wait_event(point)

    def join(self, *queues: Queue) -> None:
        for queue in queues:
            self._points[queue].record(self._streams[queue])
            self._streams[Queue.CALLER].wait_event(self._points[queue])

    def end(self) -> None:
        done = self._spare.pop() if self._spare else torch.cuda.Event()
        done.record(self._streams[Queue.CALLER])
        self._flight.done = done
        self._flights.append((self._flight, done))

    def push(self, queue: Queue, piece: Piece, slot: int, x: Tensor) -> None:
        there = self._targets[piece.peer][slot]
        self._driver.copy(self._numbers[queue], there, x.data_ptr() + piece.first, piece.size)

    def land(self, queue: Queue, piece: Piece, slot: int, out: Tensor) -> None:
        here = self._landings[piece.peer][slot]
        self._driver.copy(self._numbers[queue], out.data_ptr() + piece.first, here, piece.size)

    def keep(self, queue: Queue, source: Piece, target: Piece, x: Tensor, out: Tensor) -> None:
        there, here = out.data_ptr() + target.first, x.data_ptr() + source.first
        if there != here:  # an all-gather in place
            self._driver.copy(self._numbers[queue], there, here, source.size)

    def run(self, queue: Queue, body: Callable[[], object]) -> None:
        if queue is Queue.CALLER:
            body()
            return
        torch.cuda.set_stream(self._streams[queue])
        try:
            body()
        finally:
            torch.cuda.set_stream(self._streams[Queue.CALLER])

    def raise_flags(self, queue: Queue, marks: Sequence[Mark]) -> None:
        if len(marks) == 1:
            ((peer, flag, epoch),) = marks
            self._driver.write(self._numbers[queue], self._raised[peer, flag], epoch & _MASK)
        else:
            words = [(self._raised[peer, flag], epoch & _MASK) for peer, flag, epoch in marks]
            self._driver.write_all(self._numbers[queue], words)

    def await_flags(self, queue: Queue, marks: Sequence[Mark]) -> None:
        self._flight.awaited += marks
        if len(marks) == 1:
            ((peer, flag, epoch),) = marks
            self._driver.wait(self._numbers[queue], self._awaited[peer, flag], epoch & _MASK)
        else:
            words = [(self._awaited[peer, flag], epoch & _MASK) for peer, flag, epoch in marks]
            self._driver.wait_all(self._numbers[queue], words)

    def board(self, *, seconds: float) -> Board:
        """What a kernel is told; it looks at a flag for some seconds at least."""
        size, own = len(self._arenas), self._position
        rows = [[0] * size for _ in range(4)]
        for peer in self._local:
            there, here = self._arenas[peer].data_ptr(), self._arenas[own].data_ptr()
            rows[0][peer] = there + _flag_at(own, Flag.KERNEL)
            rows[1][peer] = there + _kernel_slots_at(own, peer, size, self._slot_bytes)
            rows[2][peer] = here + _flag_at(peer, Flag.KERNEL)
            rows[3][peer] = here + _kernel_slots_at(peer, own, size, self._slot_bytes)
        self._failed = torch.zeros(2, dtype=torch.int32, pin_memory=True)  # both sides see it
        return Board(
            table=torch.tensor(rows, dtype=torch.int64, device=self._device),
            failed=self._failed,
            size=size,
            position=own,
            slot_bytes=kernel_slot_bytes(self._slot_bytes, size),
            spins=min(int(seconds * _LOOKS), _FARTHEST),
        )

    def expect(self, marks: Sequence[Mark]) -> None:
        """Notes for what a kernel waits."""
        self._flight.awaited += marks
        self._recent.append(self._flight)

    def gave_up(self) -> tuple[Flight, Mark] | None:
        """The kernel that has ended without a flag, and that flag."""
        peer, epoch = (0, 0) if self._failed is None else self._failed.tolist()
        if not peer:
            return None
        recent = tuple(self._recent)  # the caller goes on meanwhile
        marks = ((flight, mark) for flight in recent for mark in flight.awaited)
        alike = (
            (flight, mark)
            for flight, mark in marks
            if mark.peer == peer - 1 and (mark.epoch - epoch) & _MASK == 0
        )
        unknown = Flight(name="a kernel long past", sequence=self._calls)
        return next(alike, (unknown, Mark(peer - 1, Flag.KERNEL, epoch)))

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
            for line in range(_KERNEL_LINES if flag is Flag.KERNEL else 1):
                self._driver.write(rescue, address + line * LINE, epoch & _MASK)

    def _make_streams(self) -> None:
        for queue in (Queue.PUSH, Queue.LAND):
            self._streams[queue] = torch.cuda.Stream(self._device, priority=-1)
            self._numbers[queue] = self._streams[queue].cuda_stream

    def _drop_finished(self) -> None:
        while self._flights and self._flights[0][1].query():
            self._spare.append(self._flights.popleft()[1])


def _addresses(slots: list[Tensor]) -> list[int]:
    return [slot.data_ptr() for slot in slots]


def _flag_at(member: int, flag: Flag) -> int:
    """The byte of a member's flag in an arena."""
    return (_LINES * member + flag) * LINE


def _flags_bytes(size: int) -> int:
    return -(-_flag_at(size, Flag(0)) // _PAGE) * _PAGE


def arena_bytes_of(slot_bytes: int, size: int) -> int:
    """The bytes of an arena with its flags."""
    kernel = 2 * kernel_slot_bytes(slot_bytes, size)
    return _flags_bytes(size) + (size - 1) * (SLOTS * slot_bytes + kernel)


def _kernel_slots_at(writer: int, owner: int, size: int, slot_bytes: int) -> int:
    """The byte of an owner's arena at which the two sets of slots of a writer begin."""
    row = (writer - owner - 1) % size
    first = _flags_bytes(size) + (size - 1) * SLOTS * slot_bytes
    return first + row * 2 * kernel_slot_bytes(slot_bytes, size)


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

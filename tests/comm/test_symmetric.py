"""Where flags and slots lie in an arena: every pair's in one place on both ends, and nowhere twice.

Two members of one process share a GPU here; members with one each are in
`tests/comm/transports/test_symmetric.py`.
"""

import random

import pytest
import torch
from tests.comm.device import Device, Driver, Stream

from weft.comm import symmetric
from weft.comm.driver import open_driver
from weft.comm.exchange import SLOTS, Channel, Flag, Mark, Queue
from weft.comm.kernel import LINE, SHAPE
from weft.comm.route import Block, find_route, in_turn
from weft.comm.symmetric import (
    CudaPeers,
    _flag_at,
    _flags_bytes,
    _slots,
    arena_bytes_of,
    slot_bytes_of,
)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_slots_of_all_writers_fill_an_arena_without_overlap(size):
    slot_bytes = 4096
    arena = torch.zeros(arena_bytes_of(slot_bytes, size), dtype=torch.uint8)
    for owner in range(size):
        arena.zero_()
        for writer in range(size):
            if writer != owner:
                for slot in _slots(arena, writer, owner, size, slot_bytes):
                    slot.add_(1)
        assert arena[: _flags_bytes(size)].sum() == 0
        slots = arena[_flags_bytes(size) :][: (size - 1) * SLOTS * slot_bytes]
        assert torch.equal(slots.unique(), torch.tensor([1]).byte())


def test_every_flag_has_a_line_of_its_own_before_the_slots():
    places = [_flag_at(member, flag) for member in range(8) for flag in Flag]
    assert len(set(places)) == 8 * len(Flag)
    assert all(place % 128 == 0 for place in places)
    assert max(places) < _flags_bytes(8)


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_slots_take_no_more_than_the_arena_and_keep_to_pages(size):
    slot_bytes = slot_bytes_of(1 << 26, size)
    assert slot_bytes % 4096 == 0
    assert slot_bytes * SLOTS * (size - 1) <= 1 << 26
    assert slot_bytes_of(1, size) == 4096


# ---- on a device made of queues ------------------------------------------------------------------


def gather(channel, name, x, out):
    """An all-gather as one member orders it."""
    count, size = x.numel(), channel.size
    sends, lands = [Block(0, count)] * size, in_turn([count] * size)
    at = {"position": channel.position, "slot_bytes": channel.slot_bytes}
    channel.exchange(name, find_route(sends, lands, **at), x, out)


def gathers_of(size, seed, monkeypatch):
    """Some all-gathers of random sizes by all members; what each holds, and is to hold."""
    device = Device()
    device.install(monkeypatch, symmetric)
    arenas = [torch.zeros(arena_bytes_of(4096, size), dtype=torch.uint8) for _ in range(size)]
    memories = [
        CudaPeers(arenas, position=i, slot_bytes=4096, driver=Driver(device)) for i in range(size)
    ]
    channels = [Channel(memory, size=size, position=i) for i, memory in enumerate(memories)]
    lanes, pairs, kept = [Stream(device) for _ in range(size)], [], []
    for call in range(8):
        count = random.Random(seed * 8 + call).randrange(4 * 4096)
        x = [torch.randint(0, 255, (count,), dtype=torch.uint8) for _ in range(size)]
        kept.append(x)  # as its handle does
        for i, channel in enumerate(channels):
            out = torch.full((size * count,), 7, dtype=torch.uint8)
            device.current = Stream(device) if call == 5 else lanes[i]  # once from another stream
            gather(channel, call, x[i], out)
            pairs.append((torch.cat(x), out))
    device.run(seed)
    assert not any(queue for queue in device.queues.values())
    return pairs


@pytest.mark.parametrize("size", [2, 3])
def test_blocks_find_their_slots_and_flags_in_the_arenas_of_others(size, monkeypatch):
    for seed in range(5):
        pairs = gathers_of(size, seed, monkeypatch)
        assert all(torch.equal(expected, found) for expected, found in pairs)


def test_two_writers_in_one_slot_are_caught(monkeypatch):
    monkeypatch.setattr(symmetric, "_slots", lambda arena, *_: _slots(arena, 0, 2, 3, 4096))
    wrong = 0
    for seed in range(5):
        pairs = gathers_of(3, seed, monkeypatch)
        wrong += any(not torch.equal(expected, found) for expected, found in pairs)
    assert wrong


def test_finished_calls_give_their_events_to_later_ones(monkeypatch):
    device = Device()
    device.install(monkeypatch, symmetric)
    arenas = [torch.zeros(arena_bytes_of(4096, 2), dtype=torch.uint8) for _ in range(2)]
    memory = CudaPeers(arenas, position=0, slot_bytes=4096, driver=Driver(device))
    for call in range(3):
        memory.begin(call)
        memory.fork(Queue.PUSH, Queue.LAND)
        memory.join(Queue.PUSH, Queue.LAND)
        memory.end()
        assert memory.oldest().name == call
        device.run(call)
    assert len(memory._flights) == 1
    assert len(memory._spare) == 0


def boards_of(size, monkeypatch):
    device = Device()
    device.install(monkeypatch, symmetric)
    num_bytes = arena_bytes_of(4096, size)
    arenas = [torch.zeros(num_bytes, dtype=torch.uint8) for _ in range(size)]
    memories = [
        CudaPeers(arenas, position=i, slot_bytes=4096, driver=Driver(device)) for i in range(size)
    ]
    return arenas, memories, [memory.board(seconds=1.0) for memory in memories]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_slots_and_flags_of_kernels_are_a_pairs_own_and_nobody_elses(size, monkeypatch):
    arenas, _, boards = boards_of(size, monkeypatch)
    slot_bytes, flag_bytes = boards[0].slot_bytes, 2 * SHAPE.pairs * LINE
    for owner in range(size):
        arena, base = arenas[owner], arenas[owner].data_ptr()
        for writer in set(range(size)) - {owner}:
            there = boards[writer].table[:2, owner] - base
            here = boards[owner].table[2:, writer] - base
            assert torch.equal(there, here)
            arena[here[0] :][:flag_bytes] += 1
            arena[here[1] :][: 2 * slot_bytes] += 1
            for flag in set(Flag) - {Flag.KERNEL}:
                arena[_flag_at(writer, flag) :][:LINE] += 1
            for slot in _slots(arena, writer, owner, size, 4096):
                slot.add_(1)
        assert arena.max() == 1
        assert arena[_flags_bytes(size) :].min() == 1


def test_a_kernel_that_gave_up_is_named_also_when_later_calls_have_ended(monkeypatch):
    _, (memory, _), (board, _) = boards_of(2, monkeypatch)
    assert memory.gave_up() is None
    for call in range(5):
        memory.begin(f"call {call}")
        memory.expect([Mark(1, Flag.KERNEL, 2**32 + call)])
        memory.end()
    assert memory.gave_up() is None
    board.failed.copy_(torch.tensor([2, 3]))
    flight, mark = memory.gave_up()
    assert (flight.name, mark) == ("call 3", Mark(1, Flag.KERNEL, 2**32 + 3))
    board.failed.copy_(torch.tensor([2, 9]))
    flight, mark = memory.gave_up()
    assert (flight.name, mark) == ("a kernel long past", Mark(1, Flag.KERNEL, 9))


# ---- two members in one process ------------------------------------------------------------------

SHARED_SLOT = 1 << 16
LARGEST = 5 * SHARED_SLOT
ROUNDS = 40


class Members:
    """Both ends of a group on one GPU, each on a stream of its own."""

    def __init__(self):
        device = torch.device("cuda")
        arenas = [
            torch.zeros(arena_bytes_of(SHARED_SLOT, 2), dtype=torch.uint8, device=device)
            for _ in range(2)
        ]
        torch.cuda.synchronize()
        self.memories = [
            CudaPeers(arenas, position=i, slot_bytes=SHARED_SLOT, driver=open_driver())
            for i in range(2)
        ]
        self.channels = [
            Channel(memory, size=2, position=i) for i, memory in enumerate(self.memories)
        ]
        self.streams = [torch.cuda.Stream(priority=-1) for _ in range(2)]

    def gather(self, members, x, out):
        """An all-gather as some of the members order it."""
        for i in members:
            with torch.cuda.stream(self.streams[i]):
                gather(self.channels[i], f"gather of {x[i].numel()}", x[i], out[i])


def make_pair(size):
    x = [torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda") for _ in range(2)]
    out = [torch.full((2 * size,), 7, dtype=torch.uint8, device="cuda") for _ in range(2)]
    torch.cuda.synchronize()
    return x, out


@pytest.mark.gpu
def test_calls_of_any_size_arrive_whole():
    pair, sizes = Members(), torch.Generator().manual_seed(3)
    done = []
    for i in range(ROUNDS):
        x, out = make_pair(int(torch.randint(0, (9, LARGEST)[i % 2], (1,), generator=sizes)))
        pair.gather((0, 1), x, out)
        done.append((x, out))
    torch.cuda.synchronize()
    assert all(torch.equal(one, torch.cat(x)) for x, out in done for one in out)


@pytest.mark.gpu
def test_a_call_from_another_stream_is_ordered_behind_the_last():
    pair = Members()
    x, out = make_pair(LARGEST)
    for _ in range(4):
        pair.gather((0, 1), x, out)
        pair.streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    assert all(torch.equal(one, torch.cat(x)) for one in out)


@pytest.mark.gpu
def test_a_member_that_does_not_call_holds_the_other_up_until_it_is_let_go():
    pair = Members()
    x, out = make_pair(64)
    pair.gather((0,), x, out)
    ended = pair.streams[0].record_event()
    assert not ended.query()
    late = pair.memories[0].oldest()
    assert str(late.name) == "gather of 64"
    assert not late.done.query()
    assert pair.memories[0].standing()[1, Flag.FULL_ODD] == 0
    assert pair.memories[1].standing()[0, Flag.FULL_ODD] == 1
    pair.memories[0].let_go()
    ended.synchronize()

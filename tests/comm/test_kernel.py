"""Calls in one kernel arrive whole whatever order the programs of all members run in."""

from collections import deque

import pytest
import torch

from weft.comm.call import Call, Collective, sum_in_rank_order
from weft.comm.exchange import Queue
from weft.comm.kernel import (
    REGISTERS,
    SHAPE,
    WARPS,
    KernelChannel,
    Shape,
    Turn,
    kernel_slot_bytes,
    walk,
)
from weft.errors import DeadlockError
from weft.testing.peer_kernels import KernelWorld
from weft.testing.peers import PeerWorld

SEEDS = range(20)
CALLS = 8  # more than there are slots
MOST = 48  # elements of a block: up to eight chunks of each pair
SMALL = Shape(pairs=3, ring=2, grain=8, line=8)
SLOTS = 3 * 2 * 8  # bytes of a set of slots: chunks of two elements
WRAPPED = 2**32 - 3  # an epoch from which a few calls pass zero


def make_call(collective, shape, dtype=torch.float32):
    return Call(collective=collective, axis="ep", lane="comm", label="x", shape=shape, dtype=dtype)


def make_channels(n, world, epoch=0):
    kernels = KernelWorld(world, slot_bytes=SLOTS, shape=SMALL)
    memories = [world.memory(i) for i in range(n)]
    return memories, [
        KernelChannel(memory, kernels.board(i), kernels.bodies(memory), most=4 * MOST, epoch=epoch)
        for i, memory in enumerate(memories)
    ]


def expected(collective, x):
    """What each member is to hold."""
    n, blocks = len(x), [list(one.view(len(x), -1)) for one in x]
    match collective:
        case Collective.ALL_GATHER:
            return [torch.cat(x)] * n
        case Collective.ALL_TO_ALL:
            return [torch.cat([blocks[i][j] for i in range(n)]) for j in range(n)]
        case Collective.ALL_REDUCE:
            return [sum_in_rank_order(x, torch.empty_like(x[0])) for _ in range(n)]
        case _:
            wire = WIRES.get(collective, torch.float32)
            rows = [[blocks[i][j].to(wire) for i in range(n)] for j in range(n)]
            return [sum_in_rank_order(row, torch.empty(len(row[0]))) for row in rows]


KINDS = (
    Collective.ALL_GATHER,
    Collective.ALL_TO_ALL,
    Collective.ALL_REDUCE,
    Collective.REDUCE_SCATTER,
    Collective.ALL_TO_ALL_SUM,
)
WIRES = {Collective.ALL_TO_ALL_SUM: torch.bfloat16}


def order_calls(world, n, seed, epoch=0, harm=lambda _memory: None, most=MOST):
    """Orders calls of all kinds, whose data the callers write just before; pairs of what is to be
    found and what is found just behind.
    """
    memories, channels = make_channels(n, world, epoch)
    for memory in memories:
        harm(memory)
    generator, pairs = torch.Generator().manual_seed(seed), []
    for number in range(CALLS):
        collective = KINDS[int(torch.randint(0, len(KINDS), (1,), generator=generator))]
        blocks = int(torch.randint(0, most // n, (1,), generator=generator))
        x = [torch.randn(n * blocks, generator=generator) for _ in range(n)]
        for i, due in enumerate(expected(collective, x)):
            written, out = torch.full_like(x[i], 5.0), torch.full_like(due, 7.0)
            seen = torch.full_like(due, 9.0)
            memories[i].run(Queue.CALLER, lambda a=written, b=x[i]: a.copy_(b))
            dtype = WIRES.get(collective, torch.float32)
            call = make_call(collective, tuple(x[i].shape), dtype)
            assert channels[i].takes(call)
            channels[i].post(f"call {number}", call, written, out)
            memories[i].run(Queue.CALLER, lambda a=seen, b=out: a.copy_(b))
            pairs.append((due, seen))
    return pairs


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("epoch", [0, WRAPPED])
def test_kernels_have_the_bits_of_stacked_under_every_interleaving(n, epoch):
    for seed in SEEDS:
        world = PeerWorld(n, slot_bytes=16)
        start_flags(world, epoch)
        pairs = order_calls(world, n, seed, epoch)
        world.run(seed)
        assert all(torch.equal(due, seen) for due, seen in pairs), f"{seed=}"


def of_the_result(n, i, size):
    """What a member sends to all, where it belongs in the end."""
    out = torch.full((n * size,), 7.0)
    return out.view(n, -1)[i], out


def of_the_terms(n, i, size):
    """A result on the block that stays here."""
    x = torch.full((size,), 7.0)
    return x, x.view(n, -1)[i]


def on_all_terms(_n, _i, size):
    """A result on what others have still to get."""
    x = torch.full((size,), 7.0)
    return x, x


def order_in_place(world, n, seed, collective, place):
    memories, channels = make_channels(n, world)
    generator, pairs = torch.Generator().manual_seed(seed), []
    x = [torch.randn(MOST, generator=generator) for _ in range(n)]
    for i, due in enumerate(expected(collective, x)):
        written, out = place(n, i, MOST)
        memories[i].run(Queue.CALLER, lambda a=written, b=x[i]: a.copy_(b))
        dtype = WIRES.get(collective, torch.float32)
        channels[i].post("in place", make_call(collective, (MOST,), dtype), written, out)
        pairs.append((due, out))
    return pairs


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(
    ("collective", "place"),
    [
        (Collective.ALL_GATHER, of_the_result),
        (Collective.REDUCE_SCATTER, of_the_terms),
        (Collective.ALL_TO_ALL_SUM, of_the_terms),
    ],
)
def test_a_result_may_lie_on_the_block_that_stays(collective, place, n):
    for seed in SEEDS:
        world = PeerWorld(n, slot_bytes=16)
        pairs = order_in_place(world, n, seed, collective, place)
        world.run(seed)
        assert all(torch.equal(due, seen) for due, seen in pairs), f"{seed=}"


@pytest.mark.parametrize("collective", [Collective.ALL_REDUCE, Collective.ALL_TO_ALL])
def test_a_result_on_what_is_pushed_is_caught(collective):
    """The control: what takes out is ahead of what pushes."""
    caught = 0
    for seed in SEEDS:
        world = PeerWorld(2, slot_bytes=16)
        pairs = order_in_place(world, 2, seed, collective, on_all_terms)
        world.run(seed)
        caught += any(not torch.equal(due, seen) for due, seen in pairs)
    assert caught > len(SEEDS) // 4


def crowded(memory):
    """A device with room for one pair at a time, which it begins in order."""
    wait = memory.wait

    def in_turn(queue, other):
        wait(queue, other)
        if other is Queue.CALLER and queue[1] > 0:
            for role in ("push", "take"):
                wait(queue, (role, queue[1] - 1))

    memory.wait = in_turn


def test_members_whose_pairs_run_one_after_the_other_go_on():
    for seed in SEEDS:
        world = PeerWorld(3, slot_bytes=16)
        pairs = order_calls(world, 3, seed, harm=crowded)
        world.run(seed)
        assert all(torch.equal(due, seen) for due, seen in pairs), f"{seed=}"


def test_a_device_with_room_for_one_program_stands_still():
    """The control: none of a pair goes on without the other."""
    world = PeerWorld(3, slot_bytes=16, lines=[deque() for _ in range(3)])
    order_calls(world, 3, 0)
    with pytest.raises(DeadlockError, match="landed"):
        world.run(0)


def start_flags(world, epoch):
    for member in world.members:
        for peer in range(len(world.members)):
            for kind in ("full", "landed"):
                flags = {(peer, (kind, p)): epoch % 2**32 for p in range(SMALL.pairs)}
                member.flags |= flags


def hasty(memory):
    """Raises a flag before the copies that it announces."""
    copy, raise_one, held = memory.copy, memory.raise_one, []

    def hold(*args):
        held.append(args)

    def announce(*args):
        raise_one(*args)
        while held:
            copy(*held.pop(0))

    memory.copy, memory.raise_one = hold, announce


def early(memory):
    """Takes what lies in a slot, and the slot itself, one step early."""
    patient = memory.await_one
    memory.await_one = lambda queue, peer, flag, epoch: patient(queue, peer, flag, epoch - 1)


def alone(memory):
    """Ends a kernel before its programs have ended."""
    wait = memory.wait
    memory.wait = lambda queue, other: queue is Queue.CALLER or wait(queue, other)


def greedy(memory):
    """Fills a slot before it is empty."""
    patient = memory.await_one

    def await_one(queue, peer, flag, epoch):
        if flag[0] != "landed":
            patient(queue, peer, flag, epoch)

    memory.await_one = await_one


@pytest.mark.parametrize("harm", [hasty, early, alone, greedy])
def test_the_interleavings_catch(harm):
    caught = 0
    for seed in SEEDS:
        world = PeerWorld(2, slot_bytes=16)
        pairs = order_calls(world, 2, seed, harm=harm)
        world.run(seed)
        caught += any(not torch.equal(due, seen) for due, seen in pairs)
    assert caught > len(SEEDS) // 4


def test_one_set_of_slots_in_place_of_two_is_caught(monkeypatch):
    caught, seeds = 0, range(2 * len(SEEDS))
    for seed in seeds:
        world = PeerWorld(2, slot_bytes=16)
        monkeypatch.setattr("weft.comm.kernel.Turn", lambda epoch, _: Turn(epoch, 0))
        pairs = order_calls(world, 2, seed, most=6)  # of few steps, or nobody lags by a call
        world.run(seed)
        caught += any(not torch.equal(due, seen) for due, seen in pairs)
    assert caught > len(seeds) // 4


def test_a_member_that_does_not_call_is_named():
    world = PeerWorld(2, slot_bytes=16)
    _, (here, _) = make_channels(2, world)
    x = torch.zeros(4)
    here.post("loads", make_call(Collective.ALL_REDUCE, (4,)), x, torch.empty(4))
    with pytest.raises(DeadlockError, match=r"in 'loads': .*'full', 0.* of position 1 to reach"):
        world.run(0)


def test_ragged_rows_and_long_blocks_are_not_taken():
    world = PeerWorld(2, slot_bytes=16)
    _, (channel, _) = make_channels(2, world)
    assert channel.takes(make_call(Collective.ALL_GATHER, (MOST,)))
    assert not channel.takes(make_call(Collective.ALL_GATHER, (MOST + 1,)))
    assert channel.takes(make_call(Collective.REDUCE_SCATTER, (2 * MOST,)))
    assert channel.takes(make_call(Collective.ALL_TO_ALL_SUM, (4,), torch.bfloat16))
    assert not channel.takes(make_call(Collective.ALL_TO_ALL_ROWS, (1,)))


@pytest.mark.parametrize("size", [0, 1, 1 << 14, 1 << 20, 1 << 24, 1 << 30])
@pytest.mark.parametrize("slots", [1 << 14, 1 << 17, 1 << 24])
def test_chunks_fill_no_more_than_their_slots_and_cover_a_block(size, slots):
    way = walk(size, slots)
    assert way.chunk % SHAPE.line == 0
    assert way.chunk * way.pairs * SHAPE.ring <= slots
    assert way.pairs <= SHAPE.pairs
    assert way.chunk * (way.chunks - 1) <= max(size, 1) - 1 < way.chunk * way.chunks


def test_two_calls_leave_room_on_a_device_for_a_pair_of_a_third():
    """By registers, of which a multiprocessor of an H200 has 65,536, and by threads, 2,048."""
    threads = 32 * WARPS
    room = 132 * min(65_536 // (REGISTERS * threads), 2048 // threads)
    assert 2 * (2 * SHAPE.pairs) + 2 <= room


@pytest.mark.parametrize("size", [2, 3, 8])
def test_slots_begin_on_lines(size):
    assert kernel_slot_bytes(1 << 24, size) % 128 == 0
    assert kernel_slot_bytes(4096, size) <= 4096

"""Pieces arrive whole and where they belong, whatever order the queues of all members run in."""

import random
from collections import deque

import pytest
import torch

from weft.comm.call import sum_in_rank_order
from weft.comm.exchange import Block, Channel, Flag, Made, Sum
from weft.errors import DeadlockError
from weft.testing.peers import PeerWorld

SLOT = 16
SEEDS = range(20)
CALLS = 8  # more than there are slots, so that each is used again and again
WRAPPED = 2**32 - 5  # an epoch from which the flags of a few calls pass zero


def make_sizes(n, seed):
    """sizes[i][j] bytes from i to j; a member sends nothing, another receives nothing."""
    sizes = torch.randint(0, 4 * SLOT, (n, n), generator=torch.Generator().manual_seed(seed))
    sizes[seed % n, :] = 0
    sizes[:, (seed + 1) % n] = 0
    return sizes.tolist()


def blocks(tensor, sizes):
    starts = [sum(sizes[:j]) for j in range(len(sizes))]
    return [Block(tensor=tensor, first=a, size=b) for a, b in zip(starts, sizes, strict=True)]


def order_exchanges(channels, seed):
    """Orders some ragged exchanges on every member; what each is to hold, and holds in the end."""
    n, pairs = len(channels), []
    for call in range(CALLS):
        sizes = make_sizes(n, seed * CALLS + call)
        x = [torch.randint(0, 255, (sum(row),), dtype=torch.uint8) for row in sizes]
        parts = [list(x[i].split(sizes[i])) for i in range(n)]
        for j, channel in enumerate(channels):
            receive = [sizes[i][j] for i in range(n)]
            out = torch.full((sum(receive),), 7, dtype=torch.uint8)
            channel.exchange(f"call {call}", blocks(x[j], sizes[j]), blocks(out, receive))
            pairs.append((torch.cat([parts[i][j] for i in range(n)]), out))
    return pairs


def make_channels(n, world, epoch=0):
    return [Channel(world.memory(i), size=n, position=i, epoch=epoch) for i in range(n)]


def mistakes(pairs):
    return sum(not torch.equal(expected, found) for expected, found in pairs)


@pytest.mark.parametrize("epoch", [0, WRAPPED])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_ragged_blocks_arrive_under_every_interleaving(n, epoch):
    for seed in SEEDS:
        world = PeerWorld(n, slot_bytes=SLOT, epoch=epoch)
        pairs = order_exchanges(make_channels(n, world, epoch), seed)
        world.run(seed)
        assert mistakes(pairs) == 0, f"{seed=}"


def order_sums(channels, seed):
    """Reduce-scatters of float32, of random lengths; the terms are rounded where they are made."""
    n, pairs = len(channels), []
    generator = torch.Generator().manual_seed(seed)
    for call in range(CALLS):
        count = int(torch.randint(0, 3 * SLOT, (1,), generator=generator))
        x = torch.randn(n, n, count, generator=generator)
        rounded = x.bfloat16()
        for i, channel in enumerate(channels):
            out = torch.full((count,), 7.0)
            order_sum(channel, f"call {call}", x[i], out, position=i)
            pairs.append((sum_in_rank_order(rounded[:, i], torch.empty(count)), out))
    return pairs


def order_sum(channel, name, x, out, *, position):
    n, size = len(x), out.numel() * 2

    def send(block):
        def make(slot, first, size):
            slot[:size].view(torch.bfloat16).copy_(block[first // 2 : (first + size) // 2])

        return Made(size=size, make=make)

    def add(slots, first, size):
        stretch = slice(first // 2, (first + size) // 2)
        own = x[position][stretch].bfloat16()
        terms = {j: slot[:size].view(torch.bfloat16) for j, slot in slots.items()} | {position: own}
        sum_in_rank_order([terms[j] for j in range(n)], out[stretch])

    channel.add(name, [send(block) for block in x], Sum(size=size, add=add))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_sums_are_those_in_rank_order_under_every_interleaving(n):
    for seed in SEEDS:
        world = PeerWorld(n, slot_bytes=SLOT)
        pairs = order_sums(make_channels(n, world), seed)
        world.run(seed)
        assert mistakes(pairs) == 0, f"{seed=}"


def early(memory, wanted):
    """Awaits one flag an epoch too early."""
    patient = memory.await_flag

    def await_flag(queue, peer, flag, epoch):
        patient(queue, peer, flag, epoch - (flag is wanted))

    memory.await_flag = await_flag
    return memory


def hasty(memory):
    """Raises a flag before the copy that it announces."""
    copy, raise_flag, held = memory.copy, memory.raise_flag, []

    def hold(*args, **kwargs):
        held.append((args, kwargs))

    def announce(*args):
        raise_flag(*args)
        while held:
            args, kwargs = held.pop(0)
            copy(*args, **kwargs)

    memory.copy, memory.raise_flag = hold, announce
    return memory


SABOTAGE = {
    "a slot is used again one epoch early": lambda memory: early(memory, Flag.LANDED),
    "a piece is taken one epoch early": lambda memory: early(memory, Flag.FULL),
    "a flag goes before its piece": hasty,
}


@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_the_interleavings_catch(sabotage):
    caught = 0
    for seed in SEEDS:
        world = PeerWorld(2, slot_bytes=SLOT)
        channels = [
            Channel(SABOTAGE[sabotage](world.memory(i)), size=2, position=i) for i in range(2)
        ]
        pairs = order_exchanges(channels, seed)
        world.run(seed)
        caught += mistakes(pairs) > 0
    assert caught > len(SEEDS) // 2


def order_on_lines(seed, orders):
    """Calls of three groups of the same members, each member in an order of its own, all operations
    of a member on one line.
    """
    n = len(orders)
    lines = [deque() for _ in range(n)]
    worlds = [PeerWorld(n, slot_bytes=SLOT, lines=lines) for _ in range(3)]
    channels = [make_channels(n, world) for world in worlds]
    pairs = []
    sizes = {call: make_sizes(n, seed * 100 + call) for call in range(len(orders[0]))}
    x = {
        call: [torch.randint(0, 255, (sum(row),), dtype=torch.uint8) for row in of]
        for call, of in sizes.items()
    }
    for j, order in enumerate(orders):
        for call in order:
            receive = [sizes[call][i][j] for i in range(n)]
            out = torch.full((sum(receive),), 7, dtype=torch.uint8)
            sends, lands = blocks(x[call][j], sizes[call][j]), blocks(out, receive)
            channels[call % 3][j].exchange(f"call {call}", sends, lands)
            parts = [x[call][i].split(sizes[call][i])[j] for i in range(n)]
            pairs.append((torch.cat(parts), out))
    worlds[0].run(seed)
    return pairs


@pytest.mark.parametrize("n", [2, 4])
def test_members_on_one_line_each_go_on_if_they_call_in_one_order(n):
    for seed in SEEDS:
        order = random.Random(seed).sample(range(9), 9)
        assert mistakes(order_on_lines(seed, [order] * n)) == 0, f"{seed=}"


def test_members_on_one_line_that_call_in_other_orders_lock_each_other():
    with pytest.raises(DeadlockError, match="nobody can go on"):
        order_on_lines(0, [[0, 1], [1, 0]])


def test_a_member_that_does_not_call_is_named():
    world = PeerWorld(2, slot_bytes=SLOT)
    here, _ = make_channels(2, world)
    x = torch.zeros(4, dtype=torch.uint8)
    here.exchange("tokens", blocks(x, [2, 2]), blocks(x.clone(), [2, 2]))
    with pytest.raises(DeadlockError, match="in 'tokens': FULL of position 1 to reach epoch 1"):
        world.run(0)


def test_a_member_with_nothing_to_send_raises_its_flags_all_the_same():
    world = PeerWorld(2, slot_bytes=SLOT)
    for channel in make_channels(2, world):
        nothing = torch.empty(0, dtype=torch.uint8)
        channel.exchange("nothing", blocks(nothing, [0, 0]), blocks(nothing, [0, 0]))
    world.run(0)
    assert {flag for member in world.members for key, flag in member.flags.items()} == {0, 1}
    assert all(world.members[i].flags[1 - i, flag] == 1 for i in range(2) for flag in Flag)

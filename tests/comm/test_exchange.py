"""Pieces arrive whole and where they belong, whatever order the queues of all members run in."""

import random
from collections import deque

import pytest
import torch

from weft.comm import exchange as exchanges
from weft.comm.call import sum_in_rank_order
from weft.comm.exchange import SLOTS, Channel, Flag, Queue
from weft.comm.route import Block, find_route, in_turn
from weft.errors import DeadlockError
from weft.testing.peers import PeerWorld

SLOT = 16
SEEDS = range(20)
CALLS = 8  # more than there are slots, so that each is used again and again
WRAPPED = 2**32 - 5  # an epoch from which the flags of a few calls pass zero


def make_sizes(n, seed):
    """sizes[i][j] bytes from i to j, now and then in more pieces than there are slots; now and then
    a member sends nothing and another receives nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, (1, 4, 9)[seed % 3] * SLOT, (n, n), generator=generator)
    if seed % 4 == 0:
        sizes[seed // 4 % n, :] = 0
        sizes[:, (seed // 4 + 1) % n] = 0
    return sizes.tolist()


def exchange(channel, name, x, sends, out, lands):
    """Blocks of these sizes, one behind the other, that the caller writes just before and reads
    just behind; where it finds them.
    """
    route = find_route(
        in_turn(sends), in_turn(lands), position=channel.position, slot_bytes=channel.slot_bytes
    )
    written, seen = torch.full_like(x, 5), torch.full_like(out, 7)
    channel._memory.run(Queue.CALLER, lambda: written.copy_(x))
    channel.exchange(name, route, written, out)
    channel._memory.run(Queue.CALLER, lambda: seen.copy_(out))
    return seen


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
            seen = exchange(channel, f"call {call}", x[j], sizes[j], out, receive)
            pairs.append((torch.cat([parts[i][j] for i in range(n)]), seen))
    return pairs


def make_channels(n, world, epoch=0):
    return [Channel(world.memory(i), size=n, position=i, epoch=epoch) for i in range(n)]


def mistakes(pairs):
    return sum(not torch.equal(expected, found) for expected, found in pairs)


def test_landings_on_a_queue_of_their_own_find_the_same(monkeypatch):
    monkeypatch.setattr(exchanges, "_TOGETHER", -1)
    for seed in SEEDS:
        world = PeerWorld(3, slot_bytes=SLOT)
        pairs = order_exchanges(make_channels(3, world), seed)
        world.run(seed)
        assert mistakes(pairs) == 0, f"{seed=}"


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
    blocks = [Block(j * size, size) for j in range(n)]
    homes = [Block(0, size)] * n
    blocks[position] = homes[position] = Block(0, 0)
    route = find_route(blocks, homes, position=position, slot_bytes=channel.slot_bytes)

    def make(piece, slot):
        stretch = x.view(-1)[piece.first // 2 : (piece.first + piece.size) // 2]
        slot[: piece.size].view(torch.bfloat16).copy_(stretch)

    def add(piece, slots):
        stretch = slice(piece.first // 2, (piece.first + piece.size) // 2)
        own = x[position][stretch].bfloat16()
        found = {j: slot[: piece.size].view(torch.bfloat16) for j, slot in slots.items()}
        terms = found | {position: own}
        sum_in_rank_order([terms[j] for j in range(n)], out[stretch])

    channel.add_made(name, route, make, add)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_sums_are_those_in_rank_order_under_every_interleaving(n):
    for seed in SEEDS:
        world = PeerWorld(n, slot_bytes=SLOT)
        pairs = order_sums(make_channels(n, world), seed)
        world.run(seed)
        assert mistakes(pairs) == 0, f"{seed=}"


def early(channel, wanted, by):
    """Awaits some flags epochs too early."""
    memory, patient = channel._memory, channel._memory.await_flags

    def await_flags(queue, marks):
        marks = [mark._replace(epoch=mark.epoch - by * (mark.flag in wanted)) for mark in marks]
        patient(queue, marks)

    memory.await_flags = await_flags


def hasty(channel):
    """Raises flags before the copies that they announce."""
    memory, held = channel._memory, []
    push, raise_flags = memory.push, memory.raise_flags

    def announce(*args):
        raise_flags(*args)
        while held:
            push(*held.pop(0))

    memory.push, memory.raise_flags = lambda *args: held.append(args), announce


def trusting(channel):
    """Takes what was pushed in the last call for landed."""
    call = channel._call

    def trust(*args):
        channel._before = list(channel._pushed)
        call(*args)

    channel._call = trust


def crossed(channel):
    """Raises the flag of every piece that of even ones."""
    memory = channel._memory
    raise_flags, await_flags = memory.raise_flags, memory.await_flags

    def even(marks):
        return [
            mark if mark.flag is Flag.LANDED else mark._replace(flag=Flag.FULL_EVEN)
            for mark in marks
        ]

    memory.raise_flags = lambda queue, marks: raise_flags(queue, even(marks))
    memory.await_flags = lambda queue, marks: await_flags(queue, even(marks))


def unordered(channel, name):
    """Lets queues go on without each other."""
    setattr(channel._memory, name, lambda *_: None)


SABOTAGE = {
    "a slot is used again one turn early": lambda one: early(one, {Flag.LANDED}, SLOTS),
    "a piece is taken one epoch of its flag early": lambda one: early(
        one, {Flag.FULL_EVEN, Flag.FULL_ODD}, 2
    ),
    "a flag goes before its piece": hasty,
    "what the last call pushed is taken for landed": trusting,
    "two queues raise one flag": crossed,
    "queues do not wait for the caller": lambda one: unordered(one, "fork"),
    "the caller does not wait for queues": lambda one: unordered(one, "join"),
}


@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_the_interleavings_catch(sabotage):
    caught = 0
    for seed in SEEDS:
        world = PeerWorld(2, slot_bytes=SLOT)
        channels = make_channels(2, world)
        for channel in channels:
            SABOTAGE[sabotage](channel)
        pairs = order_exchanges(channels, seed)
        try:
            world.run(seed)
        except DeadlockError:
            caught += 1
            continue
        caught += mistakes(pairs) > 0
    assert caught > len(SEEDS) // 4  # some need a peer that is far behind


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
            channel = channels[call % 3][j]
            seen = exchange(channel, f"call {call}", x[call][j], sizes[call][j], out, receive)
            parts = [x[call][i].split(sizes[call][i])[j] for i in range(n)]
            pairs.append((torch.cat(parts), seen))
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
    exchange(here, "tokens", x, [2, 2], x.clone(), [2, 2])
    with pytest.raises(DeadlockError, match="in 'tokens': FULL_ODD of position 1 to reach epoch 1"):
        world.run(0)


def test_a_member_with_nothing_to_send_raises_its_flags_all_the_same():
    world = PeerWorld(2, slot_bytes=SLOT)
    for channel in make_channels(2, world):
        nothing = torch.empty(0, dtype=torch.uint8)
        exchange(channel, "nothing", nothing, [0, 0], nothing, [0, 0])
    world.run(0)
    for i in range(2):
        flags = {flag: world.members[i].flags[1 - i, flag] for flag in Flag}
        assert flags == {Flag.FULL_EVEN: 0, Flag.FULL_ODD: 1, Flag.LANDED: 1, Flag.KERNEL: 0}

"""The adversary keeps the order of each queue and no other."""

import pytest
import torch

from weft.comm.exchange import Flag, Mark, Queue
from weft.comm.route import Piece
from weft.errors import DeadlockError
from weft.testing.peers import PeerWorld

BESIDE = (Queue.PUSH, Queue.LAND)


def order_letters(world):
    """Two queues of two members write down when they run."""
    seen = []
    for position in range(2):
        memory = world.memory(position)
        memory.begin("letters")
        memory.fork(*BESIDE)
        for queue in Queue:
            for letter in "abc":
                memory.run(queue, lambda p=position, q=queue, c=letter: seen.append((p, q, c)))
        memory.join(*BESIDE)
    return seen


def test_each_queue_keeps_its_order_and_seeds_differ():
    orders = set()
    for seed in range(20):
        world = PeerWorld(2, slot_bytes=16)
        seen = order_letters(world)
        world.run(seed)
        orders.add(tuple(seen))
        for position in range(2):
            for queue in Queue:
                letters = [c for p, q, c in seen if (p, q) == (position, queue)]
                assert letters == ["a", "b", "c"]
    assert len(orders) > 10


def test_a_seed_repeats_its_order():
    runs = []
    for _ in range(2):
        world = PeerWorld(2, slot_bytes=16)
        runs.append(order_letters(world))
        world.run(5)
    assert runs[0] == runs[1]


def test_a_call_starts_behind_all_queues_of_the_one_before():
    for seed in range(20):
        world = PeerWorld(2, slot_bytes=16)
        memory, seen = world.memory(0), []
        for call in range(3):
            memory.fork(*BESIDE)
            for queue in Queue:
                memory.run(queue, lambda c=call, to=seen: to.append(c))
            memory.join(*BESIDE)
        world.run(seed)
        assert seen == sorted(seen)


def test_a_copy_can_be_seen_half_done():
    torn = 0
    for seed in range(20):
        world = PeerWorld(2, slot_bytes=16)
        writer, reader = world.memory(0), world.memory(1)
        slot, out = reader.local(0, 0), torch.zeros(16, dtype=torch.uint8)
        slot.zero_()
        whole = torch.ones(16, dtype=torch.uint8)
        writer.push(Queue.PUSH, Piece(1, 0, 16), 0, whole)
        reader.run(Queue.LAND, lambda slot=slot, out=out: out.copy_(slot))
        world.run(seed)
        torn += 0 < int(out.sum()) < 16
    assert torn


def test_a_flag_that_never_comes_is_a_deadlock_that_names_it():
    world = PeerWorld(2, slot_bytes=16)
    memory = world.memory(1)
    memory.begin("tokens")
    memory.await_flags(Queue.LAND, [Mark(0, Flag.FULL_ODD, 3)])
    with pytest.raises(
        DeadlockError, match="position 1 land in 'tokens': FULL_ODD of position 0 to"
    ):
        world.run(0)

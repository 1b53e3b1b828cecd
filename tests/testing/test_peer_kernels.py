"""Programs of a kernel run in any order, none before the caller and none behind the end."""

import torch

from weft.comm.exchange import Queue
from weft.comm.kernel import Shape, Turn
from weft.testing.peer_kernels import KernelWorld
from weft.testing.peers import PeerWorld

SHAPE = Shape(pairs=4, ring=2, grain=4, line=4)


def order_gather(world):
    """An all-gather of two members whose pairs carry an element each; where it arrives."""
    kernels = KernelWorld(world, slot_bytes=64, shape=SHAPE)
    outs = []
    for position in range(2):
        memory, board = world.memory(position), kernels.board(position)
        x, out = torch.zeros(4), torch.zeros(8)
        memory.run(Queue.CALLER, lambda x=x, value=position + 1.0: x.fill_(value))
        kernels.bodies(memory).exchange(board, Turn(0, 0), x, out, 0)
        outs.append(out)
    return outs


def test_programs_end_in_many_orders_and_find_the_same():
    orders = set()
    for seed in range(20):
        world = PeerWorld(2, slot_bytes=16)
        outs = order_gather(world)
        ended = note_ends(world)
        world.run(seed)
        orders.add(tuple(ended))
        assert all(torch.equal(out, torch.tensor([1.0] * 4 + [2.0] * 4)) for out in outs)
    assert len(orders) > 10


def note_ends(world):
    """Which program has ended, in order, once the world runs."""
    ended = []
    for position, member in enumerate(world.members):
        for queue, steps in member.queues.items():
            if queue is not Queue.CALLER:
                memory = world.memory(position)
                memory.order(queue, "a note", lambda at=(position, queue): ended.append(at))
                assert steps[-1].name == "a note"
    return ended


def test_nothing_runs_before_the_caller():
    world = PeerWorld(2, slot_bytes=16)
    order_gather(world)
    for member in world.members:
        programs = [steps for queue, steps in member.queues.items() if queue is not Queue.CALLER]
        assert len(programs) == 8
        assert not any(steps[0].ready() for steps in programs)

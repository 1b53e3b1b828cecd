"""Collectives over peer memory: the bits of `stacked`, under every interleaving and on two GPUs."""

import pytest
import torch

from weft.comm.call import Collective
from weft.comm.exchange import Channel
from weft.comm.mesh import Mesh, groups, memberships
from weft.comm.transports.counting import CountingTransport
from weft.comm.transports.stacked import StackedWorld
from weft.comm.transports.symmetric import SymmetricTransport
from weft.testing.peers import PeerWorld

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64)
AXES, LANES = ("sp", "ep", "dense", "edp"), ("comm", "sync")
SLOT = 64  # small, so that blocks travel in several pieces


def make_input(rank, rows, *, dtype, seed):
    """Values of very different sizes, so that every order of a sum has its own bits."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    shape = (rows, 3)
    exponents = torch.randint(-6, 6, shape, generator=generator).double()
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2**exponents
    return (100 * x if dtype is torch.int64 else x).to(dtype)


def rows_between(rank, other, seed):
    """Rows from one member to another: none from the first, none to the second."""
    return 0 if rank == 0 or other == 1 else (rank * 5 + other * 3 + seed) % 40


def post_everything(t, rank, device, rows=40):
    """Every collective on every axis, lane and dtype, all posted before any is waited for."""
    handles = []
    for seed, dtype in enumerate(DTYPES):
        for axis in AXES:
            n, own = t.group_size(axis), t.group_rank(axis)
            lane = LANES[seed % 2]
            x = make_input(rank, rows * n, dtype=dtype, seed=seed).to(device)
            send = tuple(rows_between(own, j, seed) for j in range(n))
            receive = tuple(rows_between(j, own, seed) for j in range(n))
            ragged = make_input(rank, sum(send), dtype=dtype, seed=seed).to(device)
            bucket = torch.zeros(3 * rows * n * n, dtype=dtype, device=device)
            handles += [
                t.all_to_all(x, axis=axis, label="even", lane=lane),
                t.all_to_all(x.t().contiguous().t(), axis=axis, label="strided", lane=lane),
                t.all_to_all_rows(ragged, send, receive, axis=axis, label="rows", lane=lane),
                t.all_gather(x, axis=axis, label="gather", lane=lane),
                t.reduce_scatter(x, axis=axis, label="scatter", lane=lane),
                t.all_reduce(x, axis=axis, label="reduce", lane=lane),
                t.all_gather_into(bucket, x.view(-1), axis=axis, label="into", lane=lane),
                t.all_gather(x[:0], axis=axis, label="nothing", lane=lane),
                t.reduce_scatter(x[:0], axis=axis, label="nothing", lane=lane),
            ]
            if dtype is torch.float32 and n > 1:
                handles.append(sum_in_place(t, x.clone().view(-1), axis=axis, lane=lane))
    return handles


def sum_in_place(t, grad, *, axis, lane):
    own = grad.view(t.group_size(axis), -1)[t.group_rank(axis)]
    return t.all_to_all_sum(
        grad, own, wire=torch.bfloat16, axis=axis, label="gradients", lane=lane
    )


def everything(call, size):
    return True


class Peers:
    """The ranks of a mesh in one process over stacked peer memory."""

    def __init__(self, mesh, takes=everything):
        self.worlds = {
            (axis, lane, ranks): PeerWorld(len(ranks), slot_bytes=SLOT)
            for axis in AXES
            for lane in LANES
            for ranks in groups(mesh, axis)
        }
        self.inner = StackedWorld(mesh)
        self.ranks = [self.transport(mesh, rank, takes) for rank in range(mesh.world)]

    def transport(self, mesh, rank, takes):
        members = memberships(mesh, rank)
        channels = {
            (axis, lane): Channel(
                self.worlds[axis, lane, members[axis].ranks].memory(members[axis].position),
                size=len(members[axis].ranks),
                position=members[axis].position,
            )
            for axis in AXES
            for lane in LANES
        }
        return SymmetricTransport(self.inner.transport(rank), channels, takes=takes)

    def run(self, seed):
        for world in self.worlds.values():
            world.run(seed)


def run_stacked(mesh):
    world = StackedWorld(mesh)
    device = torch.device("cpu")
    posted = [post_everything(world.transport(r), r, device) for r in range(mesh.world)]
    return [[handle.wait() for handle in handles] for handles in posted]


def assert_same_bits(one, other):
    for xs, ys in zip(one, other, strict=True):
        for x, y in zip(xs, ys, strict=True):
            assert x.dtype is y.dtype
            assert torch.equal(x, y)


@pytest.mark.parametrize("mesh", [Mesh(sp=2, ep=2), Mesh(dp=2, sp=2, ep=4)], ids=str)
def test_every_collective_axis_and_dtype_has_the_bits_of_stacked(mesh):
    expected = run_stacked(mesh)
    for seed in range(3):
        peers = Peers(mesh)
        posted = [post_everything(t, r, torch.device("cpu")) for r, t in enumerate(peers.ranks)]
        peers.run(seed)
        assert_same_bits([[handle.wait() for handle in handles] for handles in posted], expected)


def test_what_the_rule_does_not_take_goes_over_the_other_wire():
    mesh = Mesh(sp=2, ep=2)
    peers = Peers(mesh, takes=lambda call, size: call.collective is Collective.ALL_GATHER)
    x = torch.arange(8.0)
    posted = [
        (t.all_gather(x + r, axis="ep", label="g"), t.reduce_scatter(x + r, axis="ep", label="s"))
        for r, t in enumerate(peers.ranks)
    ]
    for rank, (_, scattered) in enumerate(posted):
        assert torch.equal(scattered.wait(), (2 * x + 1).view(2, -1)[rank])
    peers.run(0)
    assert all(gathered.wait().equal(torch.cat([x, x + 1])) for gathered, _ in posted)


def test_bytes_are_counted_in_the_dtype_that_travels():
    ranks = [CountingTransport(t) for t in Peers(Mesh(sp=2, ep=2)).ranks]
    for t in ranks:
        sum_in_place(t, torch.zeros(64), axis="ep", lane="comm")
    assert ranks[0].counts() == {("ep", "all_to_all_sum", "gradients"): 32 * 2}

"""Collectives over peer memory: the bits of `stacked`, under every interleaving and on two GPUs."""

import hashlib
import os
import threading
from collections import deque
from functools import partial

import pytest
import torch
import torch.distributed as dist

from weft.comm import crossover
from weft.comm.call import Collective
from weft.comm.driver import open_driver
from weft.comm.exchange import Channel
from weft.comm.kernel import KernelChannel, Shape
from weft.comm.mesh import Mesh, groups, memberships
from weft.comm.reach import Reach, open_channels
from weft.comm.symmetric import CudaPeers, map_arenas
from weft.comm.transports.counting import CountingTransport
from weft.comm.transports.gloo import GlooTransport
from weft.comm.transports.nccl import NcclTransport
from weft.comm.transports.stacked import StackedWorld
from weft.comm.transports.symmetric import SymmetricTransport
from weft.comm.watch import Watch
from weft.runtime import backends
from weft.testing.peer_kernels import KernelWorld
from weft.testing.peers import PeerWorld
from weft.testing.ranks import run_ranks
from weft.trainer import peers

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
            for wire in (torch.bfloat16, torch.float32):
                if dtype is torch.float32 and n > 1:
                    grad = x.clone().view(-1)
                    handles.append(sum_in_place(t, grad, wire=wire, axis=axis, lane=lane))
    return handles


def sum_in_place(t, grad, *, axis, lane, wire=torch.bfloat16):
    own = grad.view(t.group_size(axis), -1)[t.group_rank(axis)]
    return t.all_to_all_sum(grad, own, wire=wire, axis=axis, label="gradients", lane=lane)


KERNEL_SHAPE = Shape(pairs=3, ring=2, grain=160, line=8)
KERNEL_SLOTS = 3 * 2 * 160


class Peers:
    """The ranks of a mesh in one process over stacked peer memory."""

    def __init__(self, mesh, rule=None, *, kernel_bytes=0):
        self.worlds = {
            (axis, lane, ranks): PeerWorld(len(ranks), slot_bytes=SLOT)
            for axis in AXES
            for lane in LANES
            for ranks in groups(mesh, axis)
        }
        self.kernels = {
            key: KernelWorld(world, slot_bytes=KERNEL_SLOTS, shape=KERNEL_SHAPE)
            for key, world in self.worlds.items()
            if kernel_bytes
        }
        self.kernel_bytes = kernel_bytes
        self.inner = StackedWorld(mesh)
        rule = rule or crossover.everything()
        self.ranks = [self.transport(mesh, rank, rule) for rank in range(mesh.world)]

    def transport(self, mesh, rank, rule):
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
        kernels = {
            (axis, lane): self.kernel_channel(axis, lane, members[axis])
            for axis in AXES
            for lane in LANES
            if self.kernels
        }
        return SymmetricTransport(self.inner.transport(rank), channels, rule=rule, kernels=kernels)

    def kernel_channel(self, axis, lane, member):
        world, kernels = (
            self.worlds[axis, lane, member.ranks],
            self.kernels[axis, lane, member.ranks],
        )
        memory = world.memory(member.position)
        board, bodies = kernels.board(member.position), kernels.bodies(memory)
        return KernelChannel(memory, board, bodies, most=self.kernel_bytes)

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


TWO, FOUR = Mesh(sp=2, ep=2), Mesh(dp=2, sp=2, ep=4)


@pytest.mark.parametrize(
    ("mesh", "kernel_bytes"),
    [(TWO, 0), (TWO, 480), (TWO, 1 << 14), (FOUR, 0), (FOUR, 480)],
    ids=str,
)
def test_every_collective_axis_and_dtype_has_the_bits_of_stacked(mesh, kernel_bytes):
    """Without kernels, with some of them between others, and with as many as there are."""
    expected = run_stacked(mesh)
    for seed in range(2):
        peers = Peers(mesh, kernel_bytes=kernel_bytes)
        posted = [post_everything(t, r, torch.device("cpu")) for r, t in enumerate(peers.ranks)]
        peers.run(seed)
        assert_same_bits([[handle.wait() for handle in handles] for handles in posted], expected)


def test_what_the_rule_does_not_take_goes_over_the_other_wire():
    mesh = Mesh(sp=2, ep=2)
    only = {Collective.ALL_GATHER: crossover.Sizes(least=0)}
    rule = crossover.Crossover(kernels={}, copies=only, machine="", record="")
    peers = Peers(mesh, rule=rule)
    assert not peers.ranks[0].sums_on_arrival()
    x = torch.arange(8.0)
    posted = [
        (t.all_gather(x + r, axis="ep", label="g"), t.reduce_scatter(x + r, axis="ep", label="s"))
        for r, t in enumerate(peers.ranks)
    ]
    for rank, (_, scattered) in enumerate(posted):
        assert torch.equal(scattered.wait(), (2 * x + 1).view(2, -1)[rank])
    peers.run(0)
    assert all(gathered.wait().equal(torch.cat([x, x + 1])) for gathered, _ in posted)


def way_of(peers, elements):
    """What carries an all-gather of so many FP32 elements a rank, which must arrive."""
    x = torch.randn(2, elements)
    posted = [t.all_gather(x[r], axis="ep", label="g") for r, t in enumerate(peers.ranks)]
    queues = peers.worlds["ep", "comm", (0, 1)].members[0].queues
    busy = {queue for queue, steps in queues.items() if steps}
    peers.run(0)
    assert all(torch.equal(handle.wait(), x.view(-1)) for handle in posted)
    if ("push", 0) in busy:
        return "kernel"
    return "copies" if busy else "the other wire"


RANGES = crossover.Crossover(
    kernels={Collective.ALL_GATHER: crossover.Sizes(least=0, most=300)},
    copies={Collective.ALL_GATHER: crossover.Sizes(least=200)},
    machine="",
    record="",
)


@pytest.mark.parametrize(
    ("kernel_bytes", "ways"),
    [
        (0, ["the other wire", "the other wire", "copies", "copies"]),
        (80, ["kernel", "the other wire", "copies", "copies"]),
        (160, ["kernel", "kernel", "copies", "copies"]),
        (400, ["kernel", "kernel", "kernel", "copies"]),
    ],
)
def test_kernels_come_first_and_copies_take_what_these_alone_carry_faster(kernel_bytes, ways):
    peers = Peers(Mesh(sp=2, ep=2), rule=RANGES, kernel_bytes=kernel_bytes)
    assert [way_of(peers, elements) for elements in (20, 40, 60, 100)] == ways


@pytest.mark.parametrize("kernel_bytes", [0, 80])
def test_sums_arrive_as_such_where_a_kernel_or_copies_make_them(kernel_bytes):
    sums = {Collective.ALL_TO_ALL_SUM: crossover.Sizes(least=0)}
    found = []
    for kernels, copies in ((sums, {}), ({}, sums), ({}, {})):
        rule = crossover.Crossover(kernels=kernels, copies=copies, machine="", record="")
        peers = Peers(Mesh(sp=2, ep=2), rule=rule, kernel_bytes=kernel_bytes)
        found.append(peers.ranks[0].sums_on_arrival())
    assert found == [kernel_bytes > 0, True, False]


def test_bytes_are_counted_in_the_dtype_that_travels():
    ranks = [CountingTransport(t) for t in Peers(Mesh(sp=2, ep=2)).ranks]
    for t in ranks:
        sum_in_place(t, torch.zeros(64), axis="ep", lane="comm")
    assert ranks[0].counts() == {("ep", "all_to_all_sum", "gradients"): 32 * 2}


# ---- on GPUs: two of them, or two processes that share one ---------------------------------------

PAIR = Mesh(sp=2, ep=2)
RANDOM_CALLS = 200
FLYING = 4  # calls that may be under way at once
SECONDS = 60.0
SHARED_SLOT = 1 << 20
PLACES = [
    pytest.param("one", marks=pytest.mark.gpu),
    pytest.param("two", marks=pytest.mark.gpus2),
]


@pytest.fixture
def place(request):
    """Where ranks run; they are forked, so CUDA must not be in use yet."""
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use in this process: run this file by itself")
    return request.param


def open_pair(rank, place, *, tell=peers.give_up, seconds=SECONDS, kernels=lambda _: None):
    """The transport of one of two ranks, everything over peer memory, and what it is beside."""
    device = torch.device("cuda", rank if place == "two" else 0)
    backends.prepare(device, threads=1, neighbours=2)
    if place == "two":
        other = NcclTransport(PAIR, device=device, timeout_seconds=SECONDS)
        reach = open_channels(
            other.groups, device, seconds=seconds, tell=tell, bodies=kernels(device)
        )
        assert not reach.reasons, reach.reasons
    else:
        os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
        other = GlooTransport(PAIR, timeout_seconds=SECONDS)
        reach = share(other._groups, device, seconds=seconds, tell=tell)
    return device, SymmetricTransport(
        other,
        reach.channels,
        rule=crossover.everything(),
        sums=backends.gradient_sums(device),
        kernels=reach.kernels,
        close=reach.close,
    )


def share(groups, device, *, seconds, tell):
    """Channels of processes that share a device, whose memory is mapped all the same."""
    memories = {}
    for key, group in groups.items():
        arenas = map_arenas(
            group, slot_bytes=SHARED_SLOT, device=device, meet=partial(dist.barrier, group)
        )
        memories[key] = CudaPeers(
            arenas, position=group.rank(), slot_bytes=SHARED_SLOT, driver=open_driver()
        )
    watch = Watch(tuple(memories.values()), rank=dist.get_rank(), seconds=seconds, tell=tell)
    channels = {
        key: Channel(memory, size=2, position=groups[key].rank())
        for key, memory in memories.items()
    }
    return Reach(channels=channels, kernels={}, reasons={}, close=watch.close)


def run_everything(rank, place, rows, kernels=lambda _: None):
    device, t = open_pair(rank, place, kernels=kernels)
    results = [fingerprint(handle.wait()) for handle in post_everything(t, rank, device, rows)]
    t.barrier()
    t.close()
    return results


def fingerprint(x):
    content = x.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return f"{x.dtype} {list(x.shape)} {hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize("place", PLACES, indirect=True)
@pytest.mark.parametrize("rows", [40, 400_000])
def test_gpus_give_the_bits_of_stacked(place, rows):
    """The larger blocks travel in several pieces."""
    world, cpu = StackedWorld(PAIR), torch.device("cpu")
    posted = [post_everything(world.transport(r), r, cpu, rows) for r in range(2)]
    expected = [[fingerprint(handle.wait()) for handle in handles] for handles in posted]
    assert run_ranks(2, run_everything, place, rows, timeout=300) == expected


@pytest.mark.gpus2
@pytest.mark.parametrize("rows", [40, 4_000, 400_000])
@pytest.mark.parametrize("place", ["two"], indirect=True)
def test_kernels_give_the_bits_of_stacked(place, rows):
    """The larger blocks take several steps, or copies."""
    world, cpu = StackedWorld(PAIR), torch.device("cpu")
    posted = [post_everything(world.transport(r), r, cpu, rows) for r in range(2)]
    expected = [[fingerprint(handle.wait()) for handle in handles] for handles in posted]
    found = run_ranks(2, run_everything, place, rows, backends.peer_kernels, timeout=300)
    assert found == expected


def draw(generator):
    """A number of rows that is often none and now and then more than a slot holds."""
    kind = int(torch.randint(0, 4, (1,), generator=generator))
    return int(torch.randint(0, (1, 10, 5000, 500_000)[kind], (1,), generator=generator))


def make_rows(sizes, rank, device):
    """Numbers that FP32 holds exactly."""
    return torch.arange(sum(sizes[rank]) * 4, device=device, dtype=torch.float32) + rank


def digest(x):
    """A number of the values and their order that is exact in any order of summation."""
    weights = torch.arange(x.numel(), device=x.device).remainder(61) + 1
    total = (x.view(-1).double().round().long() * weights).sum()
    return torch.stack([total, torch.full_like(total, x.numel())])


def random_calls(t, rank, device, lanes, busy=lambda: None):
    """Digests of random collectives in turn on two lanes, some of them under way at once."""
    generator = torch.Generator().manual_seed(7)  # the same on both
    compute = torch.cuda.current_stream(device)
    found, flying = [], deque()
    for i in range(RANDOM_CALLS):
        sizes = [[draw(generator) for _ in range(2)] for _ in range(2)]
        x, lane = make_rows(sizes, rank, device), LANES[i % 2]
        busy()
        lanes[lane].wait_stream(compute)
        with torch.cuda.stream(lanes[lane]):
            found.append(digest(post_random(t, i, x, sizes, lane=lane).wait()))
        flying.append((x, lanes[lane].record_event()))
        if len(flying) > FLYING:
            compute.wait_event(flying.popleft()[1])  # only then may its memory be used again
    torch.cuda.synchronize()
    return torch.stack(found).cpu()


def post_random(t, i, x, sizes, *, lane):
    rank = t.group_rank("ep")
    same = torch.arange(2 * sizes[0][0], device=x.device, dtype=torch.float32) + rank
    match i // 2 % 3:
        case 0:
            send, receive = tuple(sizes[rank]), (sizes[0][rank], sizes[1][rank])
            rows = x.view(-1, 4)
            return t.all_to_all_rows(rows, send, receive, axis="ep", label=f"{i}", lane=lane)
        case 1:
            return t.reduce_scatter(same.bfloat16(), axis="sp", label=f"{i}", lane=lane)
        case _:
            return t.all_gather(same, axis="dense", label=f"{i}", lane=lane)


def run_random(rank, place):
    """The same calls over the other wire, over peer memory, and over it under products; by kernels
    where each rank has a device.
    """
    kernels = backends.peer_kernels if place == "two" else lambda _: None
    device, t = open_pair(rank, place, kernels=kernels)
    lanes = {lane: torch.cuda.Stream(device, priority=-1) for lane in LANES}
    a = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
    found = [
        random_calls(t, rank, device, lanes),
        random_calls(t, rank, device, lanes, busy=lambda: torch.mm(a, a)),
    ]
    if place == "two":
        found.append(random_calls(t._inner, rank, device, lanes))
    t.barrier()
    t.close()
    return found


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_random_sizes_on_two_lanes_have_the_bits_of_stacked_also_under_load(place):
    """The inputs are formulas, so every rank's results are computed here, on a CPU."""
    found = run_ranks(2, run_random, place, timeout=300)
    for rank, runs in enumerate(found):
        for run in runs:
            assert torch.equal(run, runs[0]), f"{rank=}"
    assert torch.equal(torch.stack([runs[0] for runs in found]), expected_digests())


def expected_digests():
    world, cpu = StackedWorld(PAIR), torch.device("cpu")
    generator = torch.Generator().manual_seed(7)
    digests = [[], []]
    for i in range(RANDOM_CALLS):
        sizes = [[draw(generator) for _ in range(2)] for _ in range(2)]
        posted = [
            post_random(world.transport(r), i, make_rows(sizes, r, cpu), sizes, lane=LANES[i % 2])
            for r in range(2)
        ]
        for rank, handle in enumerate(posted):
            digests[rank].append(digest(handle.wait()))
    return torch.stack([torch.stack(one) for one in digests])


def run_absent(rank, place):
    """The second rank never calls; the first is told so in time, and its device is let go."""
    told, heard = [], threading.Event()

    def tell(error):
        told.append(str(error))
        heard.set()

    device, t = open_pair(rank, place, tell=tell, seconds=2.0)
    if rank == 0:
        t.all_gather(torch.ones(8, device=device), axis="ep", label="tokens").wait()
        assert heard.wait(30)
        t._channels["ep", "comm"]._memory.let_go()
        torch.cuda.synchronize()
    t.barrier()
    t.close()
    return told


def run_absent_from_kernel(rank, place):
    """The second rank never calls; the kernel of the first is told of while it looks."""
    told, heard = [], threading.Event()

    def tell(error):
        told.append(str(error))
        heard.set()

    device, t = open_pair(rank, place, tell=tell, seconds=2.0, kernels=backends.peer_kernels)
    if rank == 0:
        t.all_reduce(torch.ones(8, device=device), axis="ep", label="loads").wait()
        assert heard.wait(30)
        t._channels["ep", "comm"]._memory.let_go()
        torch.cuda.synchronize()
    t.barrier()
    t.close()
    return told


@pytest.mark.gpus2
@pytest.mark.parametrize("place", ["two"], indirect=True)
def test_a_rank_that_does_not_come_to_a_kernel_is_told(place):
    here, there = run_ranks(2, run_absent_from_kernel, place, timeout=120)
    assert there == []
    (message,) = here
    assert message.startswith("rank 0: all_reduce 'loads' of torch.float32 [8] over axis ep")
    assert "KERNEL of position 1" in message


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_a_rank_that_does_not_come_is_told_with_operator_and_epoch(place):
    here, there = run_ranks(2, run_absent, place, timeout=120)
    assert there == []
    (message,) = here
    assert message.startswith("rank 0: all_gather 'tokens' of torch.float32 [8] over axis ep")
    assert "it awaits FULL_ODD of position 1 to reach epoch 1, found 0" in message

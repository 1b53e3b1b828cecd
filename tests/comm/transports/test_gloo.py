"""The wire of a CPU gives the bits of `stacked`."""

import re
import time

import pytest
import torch
import torch.distributed as dist

from weft.comm.mesh import Mesh
from weft.comm.transports.gloo import GlooTransport
from weft.comm.transports.stacked import StackedWorld
from weft.errors import CommunicationError
from weft.testing.ranks import run_ranks

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64)
MESHES = [Mesh(sp=2, ep=2), Mesh(dp=2, sp=2, ep=2), Mesh(dp=2, sp=2, ep=4), Mesh(dp=4, ep=2)]


def make_input(rank, rows, *, dtype, seed):
    """Values of very different sizes, so that every order of a sum has its own bits."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    shape = (rows, 3)
    exponents = torch.randint(-6, 6, shape, generator=generator).double()
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2**exponents
    return (100 * x if dtype is torch.int64 else x).to(dtype)


def splits_between(rank, other, seed):
    """Rows from one world rank to another: none from rank 0, none to rank 1."""
    return 0 if rank == 0 or other == 1 else (rank * 5 + other * 3 + seed) % 4


def post_everything(t, rank, mesh):
    """Every collective on every axis, lane and dtype, all posted before any is waited for."""
    handles = []
    for seed, dtype in enumerate(DTYPES):
        for axis in ("sp", "ep", "dense", "edp"):
            n, own = t.group_size(axis), t.group_rank(axis)
            lane = "comm" if seed % 2 else "sync"
            x = make_input(rank, 4 * n, dtype=dtype, seed=seed)
            send = tuple(splits_between(own, j, seed) for j in range(n))
            receive = tuple(splits_between(j, own, seed) for j in range(n))
            rows = make_input(rank, sum(send), dtype=dtype, seed=seed)
            bucket = torch.zeros(12 * n * n, dtype=dtype)
            handles += [
                t.all_to_all(x, axis=axis, label="even", lane=lane),
                t.all_to_all(x.t().contiguous().t(), axis=axis, label="strided", lane=lane),
                t.all_to_all_rows(rows, send, receive, axis=axis, label="rows", lane=lane),
                t.all_gather(x, axis=axis, label="gather", lane=lane),
                t.reduce_scatter(x, axis=axis, label="scatter", lane=lane),
                t.all_reduce(x, axis=axis, label="reduce", lane=lane),
                t.all_gather_into(bucket, x.view(-1), axis=axis, label="into", lane=lane),
                t.all_gather(x[:0], axis=axis, label="nothing", lane=lane),
            ]
    return handles


def run_gloo(rank, mesh):
    t = GlooTransport(mesh, timeout_seconds=20)
    results = [handle.wait() for handle in post_everything(t, rank, mesh)]
    t.barrier()
    t.close()
    return results


def run_stacked(mesh):
    world = StackedWorld(mesh)
    posted = [post_everything(world.transport(rank), rank, mesh) for rank in range(mesh.world)]
    return [[handle.wait() for handle in handles] for handles in posted]


def assert_same_bits(one, other):
    for xs, ys in zip(one, other, strict=True):
        for x, y in zip(xs, ys, strict=True):
            assert x.dtype is y.dtype
            assert torch.equal(x, y)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_collective_axis_and_dtype_has_the_bits_of_stacked(mesh):
    assert_same_bits(run_ranks(mesh.world, run_gloo, mesh), run_stacked(mesh))


@pytest.mark.parametrize("sabotage", ["skip one rank", "another order"])
def test_the_comparison_catches_a_wrong_sum(monkeypatch, sabotage):
    def wrong_sum(parts, out):
        parts = list(parts)
        parts = parts[:-1] if sabotage == "skip one rank" else parts[::-1]
        out.copy_(parts[0])
        for part in parts[1:]:
            out.add_(part)
        return out

    mesh = Mesh(sp=4, ep=4)
    expected = run_stacked(mesh)
    monkeypatch.setattr("weft.comm.transports.gloo.sum_in_rank_order", wrong_sum)
    with pytest.raises(AssertionError):
        assert_same_bits(run_ranks(4, run_gloo, mesh), expected)


def drop_everything_but_the_handle(rank):
    t = GlooTransport(Mesh(sp=2, ep=2), timeout_seconds=20)
    handles = [
        t.reduce_scatter(torch.full((1 << 16,), float(i + rank)), axis="ep", label="x")
        for i in range(8)
    ]
    scribbles = [torch.full((1 << 16,), -1.0) for _ in range(8)]
    sums = [handle.wait().unique().tolist() for handle in handles]
    return sums if len(scribbles) == 8 else []


def test_memory_of_the_argument_is_not_reused_before_it_has_travelled():
    expected = [[2.0 * i + 1] for i in range(8)]
    assert run_ranks(2, drop_everything_but_the_handle) == [expected, expected]


def wait_for_a_late_rank(rank):
    t = GlooTransport(Mesh(sp=2, ep=2), timeout_seconds=20)
    dist.barrier()
    if rank == 1:
        time.sleep(0.3)
    handle = t.all_reduce(torch.ones(1), axis="sp", label="x")
    ready = handle.ready()
    first = handle.wait()
    again = handle.wait() is first and handle.ready()
    exposed = t.exposed_seconds()
    t.reset_exposed()
    return [ready, again, exposed, t.exposed_seconds()]


def test_exposed_seconds_are_the_time_blocked_in_wait():
    (ready, again, exposed, after), (_, _, late_exposed, _) = run_ranks(2, wait_for_a_late_rank)
    assert not ready
    assert again
    assert 0.2 < exposed < 5
    assert late_exposed < exposed
    assert after == 0.0


def miss_a_collective(rank):
    t = GlooTransport(Mesh(sp=2, ep=2), timeout_seconds=0.5)
    t.all_reduce(torch.ones(1), axis="ep", label="load").wait()
    if rank == 1:
        time.sleep(2)
        return ["asleep", 0.0]
    began = time.monotonic()
    try:
        t.all_reduce(torch.ones(1), axis="ep", label="load").wait()
    except CommunicationError as error:
        return [str(error), time.monotonic() - began]
    return ["no error", 0.0]


def test_a_collective_past_the_users_timeout_is_an_error_that_names_it():
    (message, seconds), _ = run_ranks(2, miss_a_collective, timeout=20)
    assert re.match(r"rank 0: all_reduce 'load' .* call 1 of axis ep lane comm, failed", message)
    assert 0.4 < seconds < 1.5


def pass_messages(rank, mesh):
    """Both directions and the wrap at once, receives posted before and after their sends."""
    t = GlooTransport(mesh, timeout_seconds=20)
    n, like = mesh.pp, torch.zeros(2**16, 2)
    up, down = (rank + 1) % n, (rank - 1) % n
    early = [t.receive(like, peer=down, axis="pp", label="x", lane="forward") for _ in range(2)]
    sends = [
        t.send(like + 10 * rank + i, peer=up, axis="pp", label="x", lane="forward")
        for i in range(2)
    ]
    sends.append(t.send(like - rank, peer=down, axis="pp", label="d", lane="backward"))
    late = t.receive(like, peer=up, axis="pp", label="d", lane="backward")
    found = [float(handle.wait()[0, 0]) for handle in (*early, late)]
    for handle in sends:
        handle.wait()
    t.close()
    return found


@pytest.mark.parametrize("n", [2, 4])
def test_messages_arrive_in_order_and_directions_do_not_mix(n):
    for rank, found in enumerate(run_ranks(n, pass_messages, Mesh(pp=n))):
        below, above = (rank - 1) % n, (rank + 1) % n
        assert found == [10.0 * below, 10.0 * below + 1, -float(above)]

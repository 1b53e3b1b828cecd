"""The meaning of every collective, against formulas written another way."""

from functools import partial

import pytest
import torch

from weft.comm.mesh import Mesh, groups
from weft.comm.transports.stacked import StackedWorld
from weft.errors import CommunicationError

SIZES = [2, 4, 8]

pairs = partial(zip, strict=True)


def make_world(n):
    world = StackedWorld(Mesh(sp=n, ep=n))
    return world, [world.transport(rank) for rank in range(n)]


def make_inputs(n, shape, *, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(n)
    ]


def make_splits(n, seed=0):
    """splits[i][j] rows go from i to j; somebody sends nothing, somebody receives nothing."""
    splits = torch.randint(0, 4, (n, n), generator=torch.Generator().manual_seed(seed))
    splits[0, :] = 0
    splits[:, n - 1] = 0
    return splits


def wait_all(handles):
    return [handle.wait() for handle in handles]


def exchange_rows(ranks, inputs, splits, label="rows"):
    return wait_all([
        t.all_to_all_rows(
            inputs[i], tuple(splits[i].tolist()), tuple(splits[:, i].tolist()),
            axis="ep", label=label,
        )
        for i, t in enumerate(ranks)
    ])  # fmt: skip


@pytest.mark.parametrize("n", SIZES)
def test_all_to_all_transposes_the_blocks(n):
    _, ranks = make_world(n)
    inputs = make_inputs(n, (3 * n, 2))
    results = wait_all([t.all_to_all(x, axis="sp", label="x") for t, x in pairs(ranks, inputs)])
    expected = torch.stack(inputs).view(n, n, 3, 2).transpose(0, 1).reshape(n, 3 * n, 2)
    assert torch.equal(torch.stack(results), expected)


@pytest.mark.parametrize("n", SIZES)
def test_ragged_rows_arrive_in_source_order(n):
    _, ranks = make_world(n)
    splits = make_splits(n)
    rows = [
        torch.tensor(
            [[i, j] for j in range(n) for _ in range(splits[i, j])], dtype=torch.int64
        ).view(-1, 2)
        for i in range(n)
    ]
    results = exchange_rows(ranks, rows, splits)
    for j, result in enumerate(results):
        expected = torch.tensor(
            [[i, j] for i in range(n) for _ in range(splits[i, j])], dtype=torch.int64
        )
        assert torch.equal(result, expected.view(-1, 2))
    assert results[-1].shape == (0, 2)


@pytest.mark.parametrize("n", SIZES)
def test_all_gather_joins_in_group_order_also_of_nothing(n):
    _, ranks = make_world(n)
    for shape in [(2, 3), (0, 3)]:
        inputs = make_inputs(n, shape)
        results = wait_all([t.all_gather(x, axis="ep", label="x") for t, x in pairs(ranks, inputs)])
        assert all(torch.equal(result, torch.cat(inputs)) for result in results)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_reductions_sum_in_rank_order(n, dtype):
    _, ranks = make_world(n)
    inputs = make_inputs(n, (2 * n, 3), dtype=dtype)
    total = inputs[0].to(torch.promote_types(dtype, torch.float32))
    for x in inputs[1:]:
        total = total + x
    total = total.to(dtype)
    scattered = [t.reduce_scatter(x, axis="ep", label="s") for t, x in pairs(ranks, inputs)]
    reduced = [t.all_reduce(x, axis="ep", label="r") for t, x in pairs(ranks, inputs)]
    assert torch.equal(torch.cat(wait_all(scattered)), total)
    assert all(torch.equal(result, total) for result in wait_all(reduced))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16])
def test_a_sum_of_what_is_exchanged_may_take_the_place_of_the_own_block(n, wire):
    _, ranks = make_world(n)
    inputs = make_inputs(n, (3 * n,), dtype=torch.float32)
    terms = torch.stack([x.to(wire).float().view(n, 3) for x in inputs])
    total = terms[0]
    for block in terms[1:]:
        total = total + block
    summed = [
        t.all_to_all_sum(x, x.view(n, 3)[i], wire=wire, axis="ep", label="s")
        for i, (t, x) in enumerate(pairs(ranks, inputs))
    ]
    assert torch.equal(torch.stack(wait_all(summed)), total)


@pytest.mark.parametrize("n", SIZES)
def test_all_gather_into_fills_the_bucket_it_was_given(n):
    _, ranks = make_world(n)
    shards = make_inputs(n, (5,))
    buckets = [torch.full((5 * n,), torch.nan, dtype=torch.float64) for _ in ranks]
    results = wait_all(
        [
            t.all_gather_into(b, x, axis="dense", label="x")
            for t, b, x in pairs(ranks, buckets, shards)
        ]
    )
    for bucket, result in pairs(buckets, results):
        assert torch.equal(bucket, torch.cat(shards))
        assert result.data_ptr() == bucket.data_ptr()


def test_all_gather_into_may_read_the_shard_out_of_the_bucket():
    _, ranks = make_world(2)
    buckets = [torch.arange(4.0) + 10 * rank for rank in range(2)]
    for rank, t in enumerate(ranks):
        shard = buckets[rank][2 * rank : 2 * rank + 2]
        t.all_gather_into(buckets[rank], shard, axis="dense", label="x")
    assert all(torch.equal(b, torch.tensor([0.0, 1.0, 12.0, 13.0])) for b in buckets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_results_keep_the_dtype(dtype):
    _, ranks = make_world(2)
    inputs = [torch.ones(4, dtype=dtype) for _ in ranks]
    for name in ("all_to_all", "all_gather", "reduce_scatter", "all_reduce"):
        handles = [getattr(t, name)(x, axis="sp", label="x") for t, x in pairs(ranks, inputs)]
        assert all(result.dtype is dtype for result in wait_all(handles))


@pytest.mark.parametrize("n", SIZES)
def test_reduce_scatter_is_the_adjoint_of_all_gather(n):
    """<all_gather(x), y> = <x, reduce_scatter(y)>, summed over ranks; integers, so exactly."""
    _, ranks = make_world(n)
    xs = [x.mul(8).round() for x in make_inputs(n, (2, 3), seed=1)]
    ys = [y.mul(8).round() for y in make_inputs(n, (2 * n, 3), seed=2)]
    gathered = wait_all([t.all_gather(x, axis="ep", label="x") for t, x in pairs(ranks, xs)])
    scattered = wait_all([t.reduce_scatter(y, axis="ep", label="y") for t, y in pairs(ranks, ys)])
    assert sum((g * y).sum() for g, y in pairs(gathered, ys)) == sum(
        (x * s).sum() for x, s in pairs(xs, scattered)
    )


@pytest.mark.parametrize("n", SIZES)
def test_rows_sent_back_with_the_splits_exchanged_are_restored(n):
    _, ranks = make_world(n)
    splits = make_splits(n, seed=3)
    inputs = [make_inputs(1, (int(splits[i].sum()), 2), seed=i)[0] for i in range(n)]
    there = exchange_rows(ranks, inputs, splits)
    back = exchange_rows(ranks, there, splits.T)
    assert all(torch.equal(x, result) for x, result in pairs(inputs, back))


def test_even_all_to_all_is_its_own_inverse():
    _, ranks = make_world(4)
    inputs = make_inputs(4, (8, 2))
    there = wait_all([t.all_to_all(x, axis="sp", label="x") for t, x in pairs(ranks, inputs)])
    back = wait_all([t.all_to_all(x, axis="sp", label="y") for t, x in pairs(ranks, there)])
    assert all(torch.equal(x, result) for x, result in pairs(inputs, back))


def test_groups_of_one_axis_do_not_mix():
    mesh = Mesh(dp=2, sp=2, ep=2)
    world = StackedWorld(mesh)
    handles = [
        world.transport(rank).all_reduce(torch.tensor([2**rank]), axis="edp", label="x")
        for rank in range(4)
    ]
    sums = {group: sum(2**rank for rank in group) for group in groups(mesh, "edp")}
    assert [h.wait().item() for h in handles] == [sums[0, 2], sums[1, 3], sums[0, 2], sums[1, 3]]


def test_nothing_is_ready_before_the_last_member_and_everything_after():
    _, ranks = make_world(4)
    handles = [t.all_gather(torch.ones(1), axis="ep", label="x") for t in ranks[:3]]
    assert not any(handle.ready() for handle in handles)
    ranks[3].all_gather(torch.ones(1), axis="ep", label="x")
    assert all(handle.ready() for handle in handles)


def test_members_may_run_ahead_of_each_other():
    world, (first, second) = make_world(2)
    early = [first.all_reduce(torch.tensor([i]), axis="sp", label=f"{i}") for i in range(3)]
    late = [second.all_reduce(torch.tensor([10 * i]), axis="sp", label=f"{i}") for i in range(3)]
    assert [h.wait().item() for h in early] == [h.wait().item() for h in late] == [0, 11, 22]
    assert world.pending() == ()


def test_lanes_and_axes_are_ordered_separately():
    _, (first, second) = make_world(2)
    x = torch.ones(2)
    first.all_reduce(x, axis="sp", label="a")
    first.all_reduce(x, axis="sp", label="b", lane="sync")
    first.all_reduce(x, axis="ep", label="c")
    assert second.all_reduce(x, axis="ep", label="c").ready()
    assert second.all_reduce(x, axis="sp", label="b", lane="sync").ready()
    assert second.all_reduce(x, axis="sp", label="a").ready()


def test_waiting_for_an_incomplete_collective_names_the_missing_ranks():
    _, ranks = make_world(4)
    handle = ranks[1].all_gather(torch.ones(1), axis="ep", label="tokens")
    with pytest.raises(CommunicationError, match=r"'tokens'.*missing ranks \[0, 2, 3\]"):
        handle.wait()


def test_pending_reports_each_incomplete_collective_with_its_place():
    world, ranks = make_world(2)
    for t in ranks:
        t.all_gather(torch.ones(1), axis="ep", label="done")
    ranks[1].all_gather(torch.ones(1), axis="ep", label="tokens")
    ranks[0].all_reduce(torch.ones(1), axis="world", label="statistics", lane="sync")
    first, second = world.pending()
    assert (first.axis, first.sequence, first.call.label) == ("ep", 1, "tokens")
    assert (first.posted, first.missing) == ((1,), (0,))
    assert (second.axis, second.lane, second.sequence) == ("world", "sync", 0)
    assert "axis world lane sync call 0: all_reduce 'statistics'" in str(second)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda t: t.all_gather(torch.ones(4), axis="ep", label="x"),
        lambda t: t.all_to_all(torch.ones(4), axis="ep", label="y"),
        lambda t: t.all_to_all(torch.ones(4).bfloat16(), axis="ep", label="x"),
        lambda t: t.all_to_all(torch.ones(6), axis="ep", label="x"),
    ],
    ids=["collective", "label", "dtype", "shape"],
)
def test_mismatch_names_both_calls_and_their_place(mistake):
    _, (first, second) = make_world(2)
    for t in (first, second):
        t.all_to_all(torch.ones(4), axis="ep", label="before")
    first.all_to_all(torch.ones(4), axis="ep", label="x")
    with pytest.raises(
        CommunicationError,
        match=r"call 1 of axis ep lane comm .*rank 0 posted all_to_all 'x' of .*rank 1 posted",
    ):
        mistake(second)


def test_rows_that_sender_and_receiver_count_differently_are_a_mismatch():
    _, (first, second) = make_world(2)
    first.all_to_all_rows(torch.ones(3, 2), (1, 2), (1, 0), axis="ep", label="rows")
    with pytest.raises(CommunicationError, match=r"send \(1, 2\).*receive \(1, 1\)"):
        second.all_to_all_rows(torch.ones(1, 2), (0, 1), (1, 1), axis="ep", label="rows")


def test_swapped_order_on_one_rank_is_a_mismatch():
    _, (first, second) = make_world(2)
    for label in ("a", "b"):
        first.all_reduce(torch.ones(1), axis="sp", label=label)
    with pytest.raises(CommunicationError, match="'a'.*'b'"):
        second.all_reduce(torch.ones(1), axis="sp", label="b")


# ---- messages ----


def make_pipeline(pp):
    world = StackedWorld(Mesh(pp=pp))
    return world, [world.transport(rank) for rank in range(pp)]


FORWARD = {"axis": "pp", "label": "activations", "lane": "forward"}


def test_the_ith_send_of_a_pair_meets_its_ith_receive():
    _, (a, b, c) = make_pipeline(3)
    like, made = torch.zeros(2), [torch.full((2,), float(i)) for i in range(4)]
    received = [b.receive(like, peer=0, **FORWARD) for _ in range(2)]
    from_b = c.receive(like, peer=1, **FORWARD)
    sent = [a.send(x, peer=1, **FORWARD) for x in made[:2]]
    assert not from_b.ready()
    b.send(made[3], peer=2, **FORWARD)
    assert [float(handle.wait()[0]) for handle in (*received, from_b)] == [0.0, 1.0, 3.0]
    assert all(handle.ready() for handle in sent)


def test_a_send_is_done_when_its_receive_is_posted_and_not_before():
    world, (a, b) = make_pipeline(2)
    handle = a.send(torch.ones(2), peer=1, **FORWARD)
    assert not handle.ready()
    assert "send 'activations' of torch.float32 [2] to position 1 posted by ranks [0]" in str(
        world.pending()[0]
    )
    b.receive(torch.zeros(2), peer=0, **FORWARD)
    assert handle.ready()
    assert world.pending() == ()


def test_both_ways_of_a_link_do_not_mix():
    _, (a, b) = make_pipeline(2)
    there, back = (
        b.receive(torch.zeros(1), peer=0, **FORWARD),
        a.receive(torch.zeros(1), peer=1, **FORWARD),
    )
    a.send(torch.ones(1), peer=1, **FORWARD)
    b.send(torch.full((1,), 2.0), peer=0, **FORWARD)
    assert (there.wait().item(), back.wait().item()) == (1.0, 2.0)


def test_a_message_of_another_shape_is_a_mismatch():
    _, (a, b) = make_pipeline(2)
    a.send(torch.ones(3), peer=1, **FORWARD)
    with pytest.raises(CommunicationError, match="differs between its members"):
        b.receive(torch.zeros(2), peer=0, **FORWARD)


def test_a_message_to_oneself_is_refused():
    _, (a, _) = make_pipeline(2)
    with pytest.raises(CommunicationError, match="position 0 of 2 cannot exchange a message"):
        a.send(torch.ones(3), peer=0, **FORWARD)

"""Counted bytes are the formula's bytes."""

import pytest
import torch

from weft.comm.mesh import Mesh
from weft.comm.transports.counting import CountingTransport
from weft.comm.transports.stacked import StackedWorld


def make_ranks(n, **options):
    world = StackedWorld(Mesh(sp=n, ep=n))
    return [CountingTransport(world.transport(rank), **options) for rank in range(n)]


@pytest.mark.parametrize("n", [2, 4, 8])
def test_counts_follow_the_formula_for_every_collective(n):
    ranks = make_ranks(n)
    x = torch.ones(8, 3, dtype=torch.bfloat16)
    x_bytes = 8 * 3 * 2
    for t in ranks:
        t.all_to_all(x, axis="sp", label="qkv")
        t.all_gather(x, axis="ep", label="tokens")
        t.reduce_scatter(x, axis="ep", label="outputs")
        t.all_reduce(x, axis="world", label="statistics", lane="sync")
        t.all_gather_into(
            torch.empty(8 * n).bfloat16(), torch.ones(8), axis="dense", label="params"
        )
    for t in ranks:
        assert t.counts() == {
            ("sp", "all_to_all", "qkv"): x_bytes * (n - 1) // n,
            ("ep", "all_gather", "tokens"): x_bytes * (n - 1),
            ("ep", "reduce_scatter", "outputs"): x_bytes * (n - 1) // n,
            ("world", "all_reduce", "statistics"): 2 * x_bytes * (n - 1) // n,
            ("dense", "all_gather", "params"): 8 * 2 * (n - 1),
        }


def test_rows_count_by_what_arrives_from_others():
    splits = [(0, 3), (5, 1)]
    ranks = make_ranks(2)
    for i, t in enumerate(ranks):
        x = torch.ones(sum(splits[i]), 4)
        t.all_to_all_rows(x, splits[i], (splits[0][i], splits[1][i]), axis="ep", label="rows")
    row_bytes = 4 * 4
    assert [t.counts()["ep", "all_to_all_rows", "rows"] for t in ranks] == [
        5 * row_bytes, 3 * row_bytes
    ]  # fmt: skip


def test_repeated_calls_add_up_and_reset_forgets():
    ranks = make_ranks(2)
    for _ in range(3):
        for t in ranks:
            t.all_gather(torch.ones(2), axis="ep", label="x").ready()
    before = ranks[0].counts()
    assert before == {("ep", "all_gather", "x"): 3 * 8}
    ranks[0].reset()
    assert ranks[0].counts() == {}
    assert before == {("ep", "all_gather", "x"): 3 * 8}


def test_counts_cannot_be_written():
    with pytest.raises(TypeError):
        make_ranks(2)[0].counts()["a", "b", "c"] = 1  # pyright: ignore[reportIndexIssue]


def test_groups_of_one_count_nothing():
    (alone,) = make_ranks(1)
    alone.all_gather(torch.ones(2), axis="ep", label="x")
    assert alone.counts() == {}
    assert alone.log() == ()


def test_results_are_those_of_the_inner_transport():
    ranks = make_ranks(2)
    handles = [t.all_reduce(torch.ones(2), axis="sp", label="x") for t in ranks]
    assert all(torch.equal(handle.wait(), torch.full((2,), 2.0)) for handle in handles)


def test_log_keeps_the_last_calls_with_their_sequence():
    first, _ = make_ranks(2, log_length=2)
    first.all_gather(torch.ones(2), axis="ep", label="a")
    first.all_gather(torch.ones(3), axis="sp", label="b")
    first.all_gather(torch.ones(4), axis="ep", label="c")
    assert [(e.call.axis, e.sequence, e.call.label, e.call.shape) for e in first.log()] == [
        ("sp", 0, "b", (3,)),
        ("ep", 1, "c", (4,)),
    ]
    assert str(first.log()[1]) == "ep/comm 1: all_gather 'c' of torch.float32 [4]"


def test_a_message_counts_where_it_is_received():
    world = StackedWorld(Mesh(pp=2))
    ranks = [CountingTransport(world.transport(rank)) for rank in range(2)]
    where = {"axis": "pp", "label": "activations", "lane": "forward"}
    ranks[0].send(torch.ones(4, 2), peer=1, **where)
    ranks[1].receive(torch.ones(4, 2), peer=0, **where)
    assert ranks[0].counts() == {("pp", "send", "activations"): 0}
    assert ranks[1].counts() == {("pp", "receive", "activations"): 32}

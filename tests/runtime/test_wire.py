import pytest
import torch

from weft.comm.mesh import Mesh
from weft.comm.transports.stacked import StackedWorld
from weft.graph.opset import OPS, Lane
from weft.ops.rows import Splits
from weft.runtime.wire import collective_bodies


@pytest.fixture
def two():
    world = StackedWorld(Mesh(dp=1, sp=2, ep=2))
    return [collective_bodies(world.transport(rank)) for rank in range(2)]


def together(bodies, name, inputs, **attributes):
    """The results of one collective on every rank, each posted before any is waited for."""
    handles = [b[name](*x, **attributes) for b, x in zip(bodies, inputs, strict=True)]
    return [handle.wait() for handle in handles]


def test_every_collective_of_the_vocabulary_has_a_body(two):
    assert set(two[0]) == {op.name for op in OPS.values() if op.lane is Lane.COMM}


def test_rows_go_there_and_come_back(two):
    rows = [torch.arange(3.0)[:, None], 10 + torch.arange(2.0)[:, None]]
    splits = [Splits(send=(1, 2), receive=(1, 0)), Splits(send=(0, 2), receive=(2, 2))]
    args = {"axis": "ep", "label": "rows"}
    there = together(two, "all_to_all_rows", zip(rows, splits, strict=True), reverse=False, **args)
    assert [r.flatten().tolist() for r in there] == [[0.0], [1.0, 2.0, 10.0, 11.0]]
    back = together(two, "all_to_all_rows", zip(there, splits, strict=True), reverse=True, **args)
    assert all(torch.equal(x, y) for x, y in zip(rows, back, strict=True))


def test_counts_arrive_by_source_rank_and_local_expert(two):
    counts = [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8])]
    found = together(two, "all_to_all_counts", [(c,) for c in counts], axis="ep", label="counts")
    assert [f.tolist() for f in found] == [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]


def test_gathered_parameters_are_the_bucket_itself(two):
    buckets = [torch.zeros(4), torch.zeros(4)]
    shards = [torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([3.0, 4.0])]
    inputs = list(zip(shards, buckets, strict=True))
    found = together(two, "gather_params", inputs, axis="dense", label="parameters")
    assert all(f.data_ptr() == b.data_ptr() for f, b in zip(found, buckets, strict=True))
    assert buckets[0].tolist() == [1, 2, 3, 4]


def test_an_exchanged_gradient_arrives_in_the_second_half_of_its_own_memory(two):
    grads = [torch.arange(8.0), 10 + torch.arange(8.0)]
    sent = [g.view(torch.bfloat16)[:8].copy_(g.to(torch.bfloat16)) for g in grads]
    inputs = list(zip(sent, grads, strict=True))
    found = together(two, "all_to_all_grad", inputs, axis="dense", label="gradients")
    assert found[1].tolist() == [4, 5, 6, 7, 14, 15, 16, 17]
    assert found[1].data_ptr() == grads[1].data_ptr() + grads[1].nbytes // 2


def test_a_hop_of_a_ring_goes_to_the_next_rank():
    world = StackedWorld(Mesh(dp=3))
    three = [collective_bodies(world.transport(rank)) for rank in range(3)]
    blocks = [(torch.full((2,), float(rank)),) for rank in range(3)]
    found = together(three, "pass_on", blocks, axis="dense", label="gradients")
    assert [f.tolist() for f in found] == [[2, 2], [0, 0], [1, 1]]


def test_a_block_is_gathered_where_its_node_has_it_in_the_bucket(two):
    buckets = [torch.zeros(8), torch.zeros(8)]
    inputs = [(torch.ones(2) * (rank + 1), bucket) for rank, bucket in enumerate(buckets)]
    together(two, "gather_block", inputs, axis="dense", label="parameters", first=4)
    assert buckets[0].tolist() == buckets[1].tolist() == [0, 0, 0, 0, 1, 1, 2, 2]


def test_statistics_are_summed_and_the_sum_of_one_rank_stays_its_own(two):
    stats = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])]
    inputs = [(s, s[1:]) for s in stats]
    found = together(two, "sum_statistics", inputs, axis="world", label="statistics")
    assert [f.tolist() for f in found] == [[11, 22], [11, 22]]
    assert stats[0].tolist() == [1, 2]


@pytest.mark.parametrize("name", ["all_to_all", "all_gather", "reduce_scatter"])
def test_what_is_not_contiguous_may_be_sent(two, name):
    wide = [torch.arange(8.0).view(4, 2)[:, :1] for _ in range(2)]
    found = together(two, name, [(x,) for x in wide], axis="sp", label="x")
    assert all(torch.isfinite(f).all() for f in found)

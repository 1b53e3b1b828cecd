"""What every transport refuses, and what it does alone."""

import inspect

import pytest
import torch

from weft.comm.mesh import Mesh
from weft.comm.transport import Transport
from weft.comm.transports.stacked import StackedWorld
from weft.errors import CommunicationError


def test_transport_is_abstract():
    assert inspect.isabstract(Transport)


@pytest.fixture
def pair():
    return StackedWorld(Mesh(sp=2, ep=2)).transport(0)


@pytest.fixture
def alone():
    return StackedWorld(Mesh()).transport(0)


@pytest.mark.parametrize("name", ["all_to_all", "reduce_scatter"])
def test_dim_that_does_not_divide_is_refused(pair, name):
    with pytest.raises(CommunicationError, match=r"dim 0 of \[3\] does not divide into 2"):
        getattr(pair, name)(torch.ones(3), axis="sp", label="x")


@pytest.mark.parametrize(
    ("send", "receive"),
    [((1, 1), (1, 5)), ((2, 1), (1, 5)), ((4, -1), (4, 0)), ((3,), (3,)), ((1, 2, 0), (1, 2, 0))],
    ids=["too few rows", "own share differs", "negative", "one split", "three splits"],
)
def test_splits_that_do_not_fit_are_refused(pair, send, receive):
    with pytest.raises(CommunicationError, match="'x' over ep"):
        pair.all_to_all_rows(torch.ones(3, 2), send, receive, axis="ep", label="x")


@pytest.mark.parametrize(
    ("bucket", "x"),
    [
        (torch.ones(5), torch.ones(2)),
        (torch.ones(2, 2), torch.ones(2)),
        (torch.ones(8)[::2], torch.ones(2)),
        (torch.ones(4), torch.ones(2, 1)),
    ],
    ids=["too long", "two dims", "strided", "shard of two dims"],
)
def test_bucket_that_does_not_fit_is_refused(pair, bucket, x):
    with pytest.raises(CommunicationError, match="do not fill a bucket"):
        pair.all_gather_into(bucket, x, axis="dense", label="x")


def test_unknown_lane_is_refused(pair):
    with pytest.raises(AssertionError, match="lane='fast'"):
        pair.all_gather(torch.ones(2), axis="sp", label="x", lane="fast")


def test_group_of_one_returns_what_it_was_given(alone):
    x = torch.arange(6.0).view(3, 2)
    for handle in (
        alone.all_to_all(x, axis="sp", label="x"),
        alone.all_to_all_rows(x, (3,), (3,), axis="ep", label="x"),
        alone.all_gather(x, axis="ep", label="x"),
        alone.reduce_scatter(x, axis="dense", label="x"),
        alone.all_reduce(x, axis="world", label="x"),
    ):
        assert handle.ready()
        assert torch.equal(handle.wait(), x)


def test_all_reduce_of_one_rank_is_a_new_tensor(alone):
    x = torch.ones(2)
    alone.all_reduce(x, axis="world", label="x").wait().add_(1)
    assert torch.equal(x, torch.ones(2))


def test_all_gather_into_of_one_rank_writes_the_bucket_in_its_dtype(alone):
    bucket = torch.zeros(2, dtype=torch.bfloat16)
    alone.all_gather_into(bucket, torch.tensor([1.0, 257.0]), axis="dense", label="x").wait()
    assert torch.equal(bucket, torch.tensor([1.0, 256.0]).bfloat16())


def test_results_carry_no_autograd_graph(alone):
    x = torch.ones(2, requires_grad=True)
    assert not alone.all_reduce(x, axis="world", label="x").wait().requires_grad

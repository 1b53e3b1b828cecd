"""A fused operator's reference is its parts: the same bits, attributes to the parts that name
them.
"""

import pytest
import torch

from weft.graph.fused import FUSED
from weft.ops.fused import in_sequence, sequences
from weft.ops.registry import reference_bodies
from weft.testing.case import cases

BODIES = reference_bodies()


def test_every_fused_operator_has_its_sequence():
    assert set(sequences(BODIES)) == set(FUSED)


@pytest.mark.parametrize("label", cases("permute", torch.float64))
def test_a_sequence_is_its_parts_in_turn(label):
    h, order, slot_row = cases("permute", torch.float64)[label].inputs
    top_k = slot_row.shape[1]
    w, ends = torch.randn(1, 8, h.shape[1], dtype=h.dtype), torch.tensor([order.shape[0]])
    weights = torch.rand(order.shape[0], dtype=h.dtype)
    rows = BODIES["permute"](h, order, slot_row, top_k=top_k)
    u = BODIES["expert_up"](rows, w, ends)
    s = BODIES["swiglu"](u, weights, ends)
    body = in_sequence(FUSED["permute_up_swiglu"], BODIES)
    found = body(h, order, slot_row, w, ends, weights, top_k=top_k)
    assert [torch.equal(a, b) for a, b in zip(found, (u, s), strict=True)] == [True, True]


def test_one_result_comes_alone_and_is_the_sum_it_was_given():
    dz, order = torch.randn(3, 4), torch.tensor([1, 0, 2])
    acc, s, ends = torch.zeros(1, 4, 6), torch.randn(3, 6), torch.tensor([3])
    found = in_sequence(FUSED["down_gather.wgrad"], BODIES)(dz, order, acc, s, ends, top_k=1)
    assert found is acc
    assert torch.allclose(acc[0], dz[order].T @ s)


def test_a_weight_gradient_that_writes_reads_nothing_of_what_was_there():
    dz, order, s = torch.randn(3, 4), torch.tensor([1, 0, 2]), torch.randn(3, 6)
    acc, ends = torch.full((2, 4, 6), torch.nan), torch.tensor([3, 3])
    found = in_sequence(FUSED["down_gather.wgrad_first"], BODIES)(dz, order, acc, s, ends, top_k=1)
    assert found is acc
    assert torch.equal(acc[1], torch.zeros(4, 6))
    assert torch.allclose(acc[0], dz[order].T @ s)


def test_a_part_of_another_table_is_another_sequence():
    """Sabotage: a part that drops the weight of a row must show."""
    careless = {**BODIES, "swiglu": lambda u, *_: BODIES["dense_swiglu"](u)}
    rows, w, ends = torch.randn(3, 4), torch.randn(1, 8, 4), torch.tensor([3])
    operands = (rows, w, ends, torch.full((3,), 0.5))
    honest, wrong = (in_sequence(FUSED["up_swiglu"], t)(*operands) for t in (BODIES, careless))
    assert torch.equal(honest[0], wrong[0])
    assert not torch.allclose(honest[1], wrong[1])

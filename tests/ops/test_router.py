"""The choice of experts and its weights."""

import pytest
import torch

from weft.ops.router import replay_experts, select_experts

CHOICE = {"top_k": 2, "score": "softmax", "renormalise": True, "scaling": 1.0}
NO_BIAS = torch.zeros(4)


def test_ties_go_to_the_lowest_id():
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    _, experts = select_experts(logits, NO_BIAS, **CHOICE)
    assert experts.tolist() == [[1, 2], [0, 1]]


def test_ties_go_to_the_lowest_id_among_many_experts():
    """Wide rows take another path through a sort, so stability is checked there too."""
    _, experts = select_experts(torch.zeros(3, 512), torch.zeros(512), **{**CHOICE, "top_k": 8})
    assert experts.tolist() == [list(range(8))] * 3


def test_best_choice_comes_first():
    _, experts = select_experts(torch.tensor([[0.0, 2.0, 1.0, 3.0]]), NO_BIAS, **CHOICE)
    assert experts.tolist() == [[3, 1]]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_bias_moves_the_choice_and_not_the_weight(score):
    logits, bias = torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([0.0, 0.0, 0.0, 5.0])
    attrs = {**CHOICE, "score": score, "renormalise": False}
    weights, experts = select_experts(logits, bias, **attrs)
    assert experts.tolist() == [[3, 0]]
    scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    assert torch.equal(weights, scores[:, [3, 0]])


def test_bias_gets_no_gradient():
    bias = torch.zeros(4, requires_grad=True)
    logits = torch.randn(5, 4, requires_grad=True)
    weights, _ = select_experts(logits, bias, **CHOICE)
    weights[:, 0].sum().backward()
    assert bias.grad is None
    assert logits.grad is not None


def test_renormalised_weights_sum_to_the_scaling():
    logits = torch.randn(6, 4, dtype=torch.float64)
    weights, _ = select_experts(logits, NO_BIAS.double(), **{**CHOICE, "scaling": 2.5})
    torch.testing.assert_close(weights.sum(-1), torch.full((6,), 2.5, dtype=torch.float64))


def test_replaying_the_own_choice_gives_the_same_bits():
    logits = torch.randn(6, 4)
    weights, experts = select_experts(logits, NO_BIAS, **CHOICE)
    again, forced = replay_experts(logits, NO_BIAS, experts, **CHOICE)
    assert torch.equal(weights, again)
    assert torch.equal(experts, forced)

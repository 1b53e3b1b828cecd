"""The choice of experts and the losses of its balance."""

import pytest
import torch

from weft.ops.router import replay_experts, router_losses, select_experts

CHOICE = {"top_k": 2, "score": "softmax", "renormalise": True, "scaling": 1.0}
LOSS = {"top_k": 2, "score": "softmax", "aux_coef": 1.0, "z_coef": 0.0, "tokens": 8, "scale": 1.0}
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


def test_balance_loss_of_an_even_load_is_its_coefficient():
    losses = router_losses(torch.zeros(8, 4), torch.full((4,), 4), torch.zeros(2), **LOSS)
    torch.testing.assert_close(losses, torch.tensor([1.0, 0.0]))


def test_balance_loss_of_the_most_uneven_load_is_the_number_of_experts_over_the_choices():
    logits = torch.full((8, 4), -30.0)
    logits[:, :2] = 30.0
    losses = router_losses(logits, torch.tensor([8, 8, 0, 0]), torch.zeros(2), **LOSS)
    torch.testing.assert_close(losses[0], torch.tensor(2.0))


def test_losses_of_shards_add_up_to_those_of_the_whole():
    logits, load = torch.randn(8, 4, dtype=torch.float64), torch.tensor([3, 5, 4, 4])
    attrs = {**LOSS, "z_coef": 0.5}
    whole = router_losses(logits, load, torch.zeros(2).double(), **attrs)
    shards = torch.zeros(2, dtype=torch.float64)
    for shard in logits.split(3):
        router_losses(shard, load, shards, **attrs)
    torch.testing.assert_close(shards, whole)

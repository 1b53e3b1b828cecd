"""Group-limited selection: never outside the best groups, and ordinary where groups do not bind."""

import torch

from weft.ops.router import select_experts
from weft.ops.selection import select_grouped_experts

RULE = {"top_k": 3, "score": "sigmoid", "renormalise": True, "scaling": 1.0}


def test_every_choice_lies_in_one_of_the_best_groups():
    logits = torch.randn(200, 12, dtype=torch.float64)
    bias = torch.zeros(12, dtype=torch.float64)
    _, chosen = select_grouped_experts(logits, bias, groups=4, top_groups=2, **RULE)
    assert max(len(set((row // 3).tolist())) for row in chosen) == 2
    free = select_experts(logits, bias, **RULE)[1]
    assert not torch.equal(free, chosen)  # the limit binds somewhere


def test_all_groups_are_no_limit():
    logits, bias = torch.randn(50, 12), torch.randn(12)
    free = select_experts(logits, bias, **RULE)
    found = select_grouped_experts(logits, bias, groups=4, top_groups=4, **RULE)
    assert all(torch.equal(a, b) for a, b in zip(found, free, strict=True))


def test_the_bias_chooses_the_groups_too():
    logits = torch.zeros(1, 6)
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    rule = {**RULE, "top_k": 2}
    weights, chosen = select_grouped_experts(logits, bias, groups=3, top_groups=1, **rule)
    assert chosen.tolist() == [[4, 5]]
    assert weights.tolist() == [[0.5, 0.5]]

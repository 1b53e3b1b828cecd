"""The sparse mixer: two different experts, and weights among scores near the best."""

import torch

from weft.ops.sparsemixer import select_sparsemixer

NONE = torch.zeros(4, dtype=torch.float64)


def test_the_two_choices_are_the_two_largest():
    logits = torch.randn(200, 4, dtype=torch.float64)
    _, chosen = select_sparsemixer(logits, NONE, jitter=0.01)
    assert torch.equal(chosen, logits.topk(2).indices)


def test_scores_far_from_the_best_do_not_count():
    logits = torch.tensor([[8.0, 4.0, 1.0, 0.0]], dtype=torch.float64)
    weights, _ = select_sparsemixer(logits, NONE, jitter=0.01)
    assert weights.tolist() == [[1.0, 1.0]]


def test_equal_scores_share_the_first_weight_and_the_second_is_among_the_rest():
    logits = torch.full((1, 4), 2.0, dtype=torch.float64)
    weights, chosen = select_sparsemixer(logits, NONE, jitter=0.01)
    assert chosen.tolist() == [[0, 1]]
    torch.testing.assert_close(weights, torch.tensor([[1 / 4, 1 / 3]], dtype=torch.float64))

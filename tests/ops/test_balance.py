"""What keeps the load even: losses, drops and biases by hand."""

import pytest
import torch

from weft.ops.balance import balance_router, count_load, keep_choices, router_losses

COEFS = ("aux_coef", "device_coef", "sequence_coef", "global_coef")
PLACE = {"first": 0, "sequence": 4, "stretch": 4}
LOSS = {"top_k": 2, "score": "softmax", "groups": 2, "z_coef": 0.0, "scale": 1.0, **PLACE}
EVEN = torch.full((2, 4), 2)  # two sequences of four tokens, two choices each, four experts


def losses_of(logits, load, past=None, **attrs):
    past = torch.ones(4) if past is None else past
    coefs = dict.fromkeys(COEFS, 0.0)
    total = torch.zeros(2, dtype=logits.dtype)
    return router_losses(logits, load, past, total, **{**LOSS, **coefs, **attrs})


@pytest.mark.parametrize("coef", COEFS)
def test_each_balance_loss_of_an_even_load_is_its_coefficient(coef):
    losses = losses_of(torch.zeros(8, 4), EVEN, **{coef: 0.5})
    torch.testing.assert_close(losses, torch.tensor([0.5, 0.0]))


def test_the_loss_of_the_most_uneven_load_is_the_number_of_experts_over_the_choices():
    logits = torch.full((8, 4), -30.0)
    logits[:, :2] = 30.0
    load = torch.tensor([[4, 4, 0, 0], [4, 4, 0, 0]])
    torch.testing.assert_close(losses_of(logits, load, aux_coef=1.0)[0], torch.tensor(2.0))


def test_a_group_is_even_whatever_happens_inside_it():
    logits = torch.full((8, 4), -30.0)
    logits[:, ::2] = 30.0
    load = torch.tensor([[4, 0, 4, 0], [4, 0, 4, 0]])  # groups {0, 1} and {2, 3}
    torch.testing.assert_close(losses_of(logits, load, device_coef=1.0)[0], torch.tensor(1.0))
    torch.testing.assert_close(losses_of(logits, load, aux_coef=1.0)[0], torch.tensor(2.0))


def test_sequences_that_are_uneven_each_in_its_own_way_are_even_together():
    logits = torch.full((8, 4), -30.0)
    logits[:4, :2] = logits[4:, 2:] = 30.0
    load = torch.tensor([[4, 4, 0, 0], [0, 0, 4, 4]])
    torch.testing.assert_close(losses_of(logits, load, aux_coef=1.0)[0], torch.tensor(1.0))
    torch.testing.assert_close(losses_of(logits, load, sequence_coef=1.0)[0], torch.tensor(2.0))


def test_the_global_loss_knows_the_past_alone():
    past = torch.tensor([4.0, 0.0, 0.0, 0.0])
    here = losses_of(torch.zeros(8, 4), EVEN, past, global_coef=1.0)
    there = losses_of(torch.zeros(8, 4), EVEN * 0, past, global_coef=1.0)
    torch.testing.assert_close(here, there)
    assert not losses_of(torch.randn(8, 4), EVEN, past * 0, global_coef=1.0).any()


def test_losses_of_shards_add_up_to_those_of_the_whole():
    logits, load = (
        torch.randn(8, 4, dtype=torch.float64),
        torch.tensor([[3, 2, 1, 2], [0, 3, 5, 0]]),
    )
    attrs = dict.fromkeys(COEFS, 0.4) | {"z_coef": 0.5}
    whole = losses_of(logits, load, **attrs)
    first, second = logits.split(5)
    shards = losses_of(first, load, **attrs) + losses_of(second, load, **attrs, first=5)
    torch.testing.assert_close(shards, whole)


def test_loads_of_shards_add_up_to_those_of_the_whole():
    chosen = torch.tensor([[0, 1], [2, 3], [0, 2], [0, 3], [1, 2], [1, 0], [3, 1], [3, 0]])
    attrs = {"experts": 4, "stretch": 4, "rows": 2}
    whole = count_load(chosen, first=0, **attrs)
    assert whole.tolist() == [[3, 1, 2, 2], [2, 3, 1, 2]]
    parts = count_load(chosen[:3], first=0, **attrs) + count_load(chosen[3:], first=3, **attrs)
    assert torch.equal(parts, whole)


def kept(scores, chosen, capacity, first=0, tokens=None, groups=2):
    tokens = len(chosen) if tokens is None else tokens
    attrs = {"experts": 4, "groups": groups, "capacity": capacity}
    return keep_choices(
        torch.tensor(scores), torch.tensor(chosen), first=first, tokens=tokens, **attrs
    )


def test_a_group_keeps_its_highest_scores():
    own, dropped = kept([[0.9, 0.1], [0.2, 0.5], [0.3, 0.4]], [[0, 2], [1, 0], [1, 3]], 2)
    assert own.tolist() == [[0, 2], [4, 0], [4, 3]]
    assert dropped.tolist() == [2]


def test_of_equal_scores_the_lower_token_is_kept_and_then_the_better_choice():
    own, dropped = kept([[0.5, 0.5], [0.5, 0.5]], [[1, 0], [0, 1]], 3)
    assert own.tolist() == [[1, 0], [0, 4]]
    assert dropped.tolist() == [1]


def test_what_a_rank_keeps_is_its_part_of_what_all_keep():
    scores, chosen = [[0.9, 0.1], [0.2, 0.5], [0.3, 0.4]], [[0, 2], [1, 0], [1, 3]]
    own, dropped = kept(scores, chosen, 2, first=1, tokens=2)
    assert own.tolist() == [[4, 0], [4, 3]]
    assert dropped.tolist() == [2]


def test_nothing_is_dropped_where_there_is_room_and_all_where_there_is_none():
    chosen = [[0, 1], [2, 3]]
    assert kept([[0.1, 0.2], [0.3, 0.4]], chosen, 2)[0].tolist() == chosen
    assert kept([[0.1, 0.2], [0.3, 0.4]], chosen, 0)[1].tolist() == [4]


def balanced(loads, refused=0.0):
    stats = torch.tensor([0.0, 0.0, 0.0, 1.0, *loads, 0.0, 0.0])
    biases, past = torch.zeros(2, 4), torch.full((2, 4), 7.0)
    return balance_router(stats, torch.tensor([1.0, refused]), biases, past, rate=0.5, first=4)


def test_a_bias_rises_where_the_load_is_low_and_rests_where_it_is_even():
    biases, past = balanced([4.0, 0.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    assert biases.tolist() == [[-0.5, 0.5, 0.0, 0.0], [0.0] * 4]
    assert past.tolist() == [[2.0, 0.0, 1.0, 1.0], [0.0] * 4]


def test_a_refused_step_moves_no_bias_even_if_its_load_is_not_a_number():
    for loads in ([4.0, 0.0] * 4, [float("nan")] * 8):
        biases, past = balanced(loads, refused=1.0)
        assert not biases.any()
        assert (past == 7.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_that_differ_in_their_last_bit_alone_are_equal(dtype):
    score = torch.tensor(0.7, dtype=dtype)
    above = torch.nextafter(score, torch.ones_like(score))
    attrs = {"experts": 2, "groups": 1, "capacity": 1, "first": 0, "tokens": 2}
    for pair in ((score, above), (above, score)):
        own, _ = keep_choices(torch.stack(pair).view(2, 1), torch.tensor([[1], [1]]), **attrs)
        assert own.tolist() == [[1], [2]]

"""A token is sent once to a rank, and asks there for what it chose there."""

import pytest
import torch

from weft.ops.rows import Splits, gather_sum, permute, permute_weights, plan_local, plan_rows
from weft.ops.visits import count_visits, plan_visits, visits_to_host
from weft.testing.routing import GENERATORS

RANKS, LOCAL, K, TOKENS = 3, 2, 3, 17


def chosen(generator: str) -> torch.Tensor:
    return torch.from_numpy(GENERATORS[generator](TOKENS, RANKS * LOCAL, K, 5))


def leaving(experts: torch.Tensor) -> Splits:
    counts = count_visits(experts, ranks=RANKS, local=LOCAL)
    return visits_to_host(counts, torch.zeros(RANKS, 2, dtype=torch.int64))[0]


@pytest.mark.parametrize("generator", GENERATORS)
def test_visits_are_the_ranks_of_each_tokens_experts(generator):
    experts = chosen(generator)
    expected = [sorted({e // LOCAL for e in row}) for row in experts.tolist()]
    order, slot_row, asked = plan_visits(experts, leaving(experts), ranks=RANKS, local=LOCAL)
    assert [torch.nonzero(row >= 0).flatten().tolist() for row in slot_row] == expected
    places = [(int(c) % RANKS, int(c) // RANKS) for c in order]
    assert places == sorted(places), "by rank, then by token"
    for (rank, token), wanted in zip(places, asked.tolist(), strict=True):
        mine = [e - rank * LOCAL if e // LOCAL == rank else -1 for e in experts[token].tolist()]
        assert wanted == mine


@pytest.mark.parametrize("generator", GENERATORS)
def test_counts_are_visits_and_the_choices_they_bring(generator):
    experts = chosen(generator)
    visits, choices = count_visits(experts, ranks=RANKS, local=LOCAL).view(-1, 2).T
    there = experts // LOCAL
    assert visits.tolist() == [int((there == r).any(1).sum()) for r in range(RANKS)]
    assert choices.tolist() == [int((there == r).sum()) for r in range(RANKS)]


@pytest.mark.parametrize("generator", GENERATORS)
def test_expanded_visits_are_the_rows_that_would_have_been_sent(generator):
    experts, h = chosen(generator), torch.randn(TOKENS, 4, dtype=torch.float64)
    gates = torch.rand(TOKENS, K, dtype=torch.float64)
    splits = leaving(experts)
    order, slot_row, asked = plan_visits(experts, splits, ranks=RANKS, local=LOCAL)
    plain, _, _, _ = plan_rows(experts, experts=RANKS * LOCAL)
    wanted = permute(h, plain, slot_row, top_k=K), permute_weights(gates, plain, slot_row, top_k=K)
    rows, scales, partial = [], [], []
    for tokens, asks, weights in zip(
        permute(h, order, slot_row, top_k=RANKS).split(splits.send),
        asked.split(splits.send),
        permute(gates, order, slot_row, top_k=RANKS).split(splits.send),
        strict=True,
    ):
        here, slots, _ = plan_local(asks, int((asks >= 0).sum()), first=0, local=LOCAL)
        rows.append(permute(tokens, here, slots, top_k=K))
        scales.append(permute_weights(weights, here, slots, top_k=K))
        partial.append(gather_sum(rows[-1], slots, here, top_k=K))
    assert torch.equal(torch.cat(rows), wanted[0])
    assert torch.equal(torch.cat(scales), wanted[1])
    home = gather_sum(torch.cat(partial), slot_row, order, top_k=RANKS)
    torch.testing.assert_close(home, K * h)


def test_the_host_learns_both_splits_and_its_rows():
    sent, received = torch.tensor([2, 3, 0, 0]), torch.tensor([[2, 3], [1, 4]])
    assert visits_to_host(sent, received) == (Splits(send=(2, 0), receive=(2, 1)), 7)

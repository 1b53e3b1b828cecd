"""Heads over ranks: what the all-to-all moves, played by slicing blocks."""

import pytest
import torch

from weft.ops.heads import join_heads, join_heads_dgrad, pack_heads, pack_heads_dgrad, split_heads

TOKENS, HEADS, KV_HEADS, CHANNELS = 3, 8, 2, 4


def shards(sp):
    generator = torch.Generator().manual_seed(sp)

    def draw(heads):
        return torch.randn(sp * TOKENS, heads, CHANNELS, dtype=torch.float64, generator=generator)

    return draw(HEADS), draw(KV_HEADS), draw(KV_HEADS)


def exchange(packed):
    """The all-to-all: block r of every rank's tensor goes to rank r."""
    sp = len(packed)
    return [torch.cat([p.chunk(sp)[rank] for p in packed]) for rank in range(sp)]


@pytest.mark.parametrize("sp", [1, 2, 4, 8])
def test_each_rank_receives_its_heads_of_all_tokens(sp):
    whole = shards(sp)
    packed = [
        pack_heads(*(x.chunk(sp)[rank] for x in whole), sp=sp, heads=HEADS, kv_heads=KV_HEADS)
        for rank in range(sp)
    ]
    share, kv_share = HEADS // sp, max(KV_HEADS // sp, 1)
    for rank, received in enumerate(exchange(packed)):
        q, k, v = split_heads(received, heads=share, kv_heads=kv_share)
        first = rank * KV_HEADS // sp
        assert torch.equal(q, whole[0][:, rank * share : (rank + 1) * share])
        assert torch.equal(k, whole[1][:, first : first + kv_share])
        assert torch.equal(v, whole[2][:, first : first + kv_share])


@pytest.mark.parametrize("sp", [1, 2, 4])
def test_joined_heads_are_all_heads_of_this_ranks_tokens(sp):
    whole, _, _ = shards(sp)
    by_rank = [whole[:, rank * HEADS // sp : (rank + 1) * HEADS // sp] for rank in range(sp)]
    for rank, received in enumerate(exchange([x.contiguous() for x in by_rank])):
        joined = join_heads(received, sp=sp, heads=HEADS // sp)
        assert torch.equal(joined, whole.chunk(sp)[rank].flatten(1))
        assert torch.equal(join_heads_dgrad(joined, sp=sp, heads=HEADS // sp), received)


def test_replicated_heads_get_the_sum_of_their_replicas_gradients():
    sp = 8  # four ranks share each of the two key heads
    dp = torch.ones(sp * TOKENS, 3 * CHANNELS, dtype=torch.float64)
    dq, dk, dv = pack_heads_dgrad(dp, sp=sp, heads=HEADS, kv_heads=KV_HEADS)
    assert dq.shape[1] == HEADS
    assert (dq == 1).all()
    assert dk.shape[1] == KV_HEADS
    assert (dk == 4).all()
    assert (dv == 4).all()


@pytest.mark.parametrize(("sp", "heads", "kv_heads"), [(3, 8, 2), (4, 12, 6), (6, 12, 4)])
def test_heads_that_do_not_divide_are_refused(sp, heads, kv_heads):
    q, kv = torch.zeros(2, heads, 4), torch.zeros(2, kv_heads, 4)
    with pytest.raises(AssertionError):
        pack_heads(q, kv, kv, sp=sp, heads=heads, kv_heads=kv_heads)

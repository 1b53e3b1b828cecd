import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.parallel.layout import Attention, Layout
from weft.parallel.share import numbering_of, share_of, whole, zigzag


@pytest.mark.parametrize("attention", Attention)
@given(ranks=st.integers(1, 5), chunk=st.integers(1, 4), sequences=st.integers(1, 3))
def test_shares_of_a_group_are_the_micro_batch_once(attention, ranks, chunk, sequences):
    layout, sequence = Layout(sp=ranks, attention=attention), 2 * ranks * chunk
    shares = [
        share_of(layout, rank, sequences=sequences, sequence=sequence) for rank in range(ranks)
    ]
    held = [token for share in shares for r in share.tokens for token in r]
    assert sorted(held) == list(range(sequences * sequence))
    assert len({sum(map(len, share.tokens)) for share in shares}) == 1


@given(ranks=st.integers(1, 6), chunk=st.integers(1, 4))
def test_context_parallel_ranks_attend_to_equally_many_keys(ranks, chunk):
    sequence = 2 * ranks * chunk
    pairs = {
        sum(query + 1 for r in zigzag(rank, ranks, sequences=1, sequence=sequence) for query in r)
        for rank in range(ranks)
    }
    assert len(pairs) == 1


def test_a_contiguous_cut_would_be_uneven():
    pairs = [sum(query + 1 for query in range(first, first + 4)) for first in (0, 4)]
    assert pairs[0] != pairs[1]


def test_a_rank_of_tensor_parallel_attention_knows_every_position():
    share = share_of(Layout(sp=2, attention=Attention.TP), 1, sequences=1, sequence=8)
    assert share.tokens == (range(4, 8),)
    assert share.positions == whole(8).positions


@pytest.mark.parametrize("attention", Attention)
@given(ranks=st.integers(1, 5), chunk=st.integers(1, 4), sequences=st.integers(1, 3))
def test_a_rank_counts_its_tokens_into_the_sequences_they_are_of(
    attention, ranks, chunk, sequences
):
    layout, sequence = Layout(sp=ranks, attention=attention), 2 * ranks * chunk
    sizes = {"sequences": sequences, "sequence": sequence}
    for rank in range(ranks):
        held = [token for r in share_of(layout, rank, **sizes).tokens for token in r]
        numbers = numbering_of(layout, rank, **sizes)
        counted = [(numbers.first + place) // numbers.stretch for place in range(len(held))]
        assert counted == [token // sequence for token in held]

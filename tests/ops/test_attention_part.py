"""Some queries of a stream attend as they would among all of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.ops.attention import attention, attention_dgrad, segments
from weft.ops.attention_part import attention_part, attention_part_dgrad, parts
from weft.ops.heads import order_kv, order_kv_dgrad
from weft.parallel.share import zigzag

N, H, G, C = 24, 4, 2, 8
ENDS = [(24,), (12, 24), (1, 2, 11, 12, 13, 24), (6, 12, 18, 24), tuple(range(1, 25))]


def operands() -> tuple[torch.Tensor, ...]:
    made = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(N, heads, C, generator=made, dtype=torch.float64) for heads in (H, G, G, H)
    )


def pick(x: torch.Tensor, held: tuple[range, ...], dim: int = 0) -> torch.Tensor:
    return torch.cat([x.narrow(dim, r.start, len(r)) for r in held], dim)


@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_zigzag_parts_together_are_attention(ends, ranks):
    q, k, v, da = operands()
    every = segments(ends, "cpu")
    a, lse = attention(q, k, v, every)
    wanted = attention_dgrad(da, q, k, v, a, lse, every)
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for rank in range(ranks):
        held = zigzag(rank, ranks, sequences=2, sequence=N // 2)
        mine = segments(ends, "cpu", held=held)
        own, own_lse = attention_part(pick(q, held), k, v, mine)
        torch.testing.assert_close(own, pick(a, held))
        torch.testing.assert_close(own_lse, pick(lse, held, 1))
        grads = attention_part_dgrad(pick(da, held), pick(q, held), k, v, own, own_lse, mine)
        torch.testing.assert_close(grads[0], pick(wanted[0], held))
        dk, dv = dk + grads[1], dv + grads[2]
    torch.testing.assert_close(dk, wanted[1])
    torch.testing.assert_close(dv, wanted[2])


def test_a_query_too_far_back_is_found():
    """The control: queries of the first half that are taken for those of the second."""
    q, k, v, _ = operands()
    a, _ = attention(q, k, v, segments((N,), "cpu"))
    wrong, _ = attention_part(q[:12], k, v, segments((N,), "cpu", held=(range(12, 24),)))
    assert (wrong - a[:12]).abs().max() > 0.1


@settings(max_examples=50, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 29), max_size=6, unique=True),
    edges=st.lists(st.integers(0, 30), min_size=2, max_size=6, unique=True),
)
def test_parts_hold_every_query_once_and_the_keys_before_it(cuts, edges):
    ends, edges = (*sorted(cuts), 30), sorted(edges)
    held = tuple(range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False))
    tokens = [token for r in held for token in r]
    seen = []
    for part in parts(segments(ends, "cpu", held=held)):
        for i in range(part.queries.count):
            last = part.keys.start + (i + 1) * part.keys.length
            first = part.queries.start + i * part.queries.length
            seen += range(first, first + part.queries.length)
            mine = tokens[first : first + part.queries.length]
            assert mine == list(range(last - part.queries.length, last))
            start = last - part.keys.length
            assert start == 0 or start in ends
            assert not any(start < end < last for end in ends)
    assert seen == list(range(len(tokens)))


def test_neighbouring_documents_of_one_length_are_one_batch():
    found = parts(segments((4, 8, 12, 16), "cpu", held=(range(4, 16),)))
    assert [(p.queries.count, p.keys.tokens) for p in found] == [(3, slice(4, 16))]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_gathered_keys_are_put_into_the_order_of_the_stream(ranks):
    stream = torch.arange(2.0 * N).view(N, 2, 1)
    held = [zigzag(r, ranks, sequences=2, sequence=N // 2) for r in range(ranks)]
    gathered = torch.cat([pick(stream, ranges) for ranges in held])
    k, v = order_kv(gathered, sp=ranks, sequences=2)
    assert torch.equal(torch.cat((k, v), 1), stream)
    assert torch.equal(order_kv_dgrad(k, v, sp=ranks, sequences=2), gathered)

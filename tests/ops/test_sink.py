"""Sinks and windows: their limits are plain attention and attention to oneself."""

import torch

from weft.ops.attention import attention, segments
from weft.ops.sink import sink_attention, sink_attention_wgrad

DOCUMENTS = segments((3, 9, 16), "cpu")
WHOLE = {"first": 0, "window": 0}


def operands():
    return [torch.randn(16, heads, 6, dtype=torch.float64) for heads in (4, 2, 2)]


def test_a_sink_without_weight_is_plain_attention():
    q, k, v = operands()
    nothing = torch.full((4,), -1e9, dtype=torch.float64)
    a, lse = sink_attention(q, k, v, nothing, DOCUMENTS, **WHOLE)
    expected, sums = attention(q, k, v, DOCUMENTS)
    torch.testing.assert_close(a, expected)
    torch.testing.assert_close(lse, sums)


def test_a_sink_that_takes_all_leaves_nothing():
    q, k, v = operands()
    a, _ = sink_attention(q, k, v, torch.full((4,), 1e3).double(), DOCUMENTS, **WHOLE)
    assert a.abs().max() < 1e-100


def test_a_window_of_one_sees_itself():
    q, k, v = operands()
    nothing = torch.full((4,), -1e9, dtype=torch.float64)
    a, _ = sink_attention(q, k, v, nothing, DOCUMENTS, first=0, window=1)
    torch.testing.assert_close(a, v.repeat_interleave(2, dim=1))


def test_a_window_as_long_as_the_longest_document_hides_nothing():
    q, k, v = operands()
    sinks = torch.randn(4, dtype=torch.float64)
    a, _ = sink_attention(q, k, v, sinks, DOCUMENTS, first=0, window=7)
    assert torch.equal(a, sink_attention(q, k, v, sinks, DOCUMENTS, **WHOLE)[0])


def test_a_rank_adds_to_the_sinks_of_its_own_heads():
    q, k, v = operands()
    sinks = torch.randn(8, dtype=torch.float64)
    a, lse = sink_attention(q, k, v, sinks, DOCUMENTS, first=4, window=0)
    acc = torch.zeros(8, dtype=torch.float64)
    sink_attention_wgrad(acc, torch.randn_like(a), sinks, a, lse, first=4, window=0)
    assert not acc[:4].any()
    assert acc[4:].all()

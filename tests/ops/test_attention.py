"""Documents: no value and no gradient crosses an edge, and runs are what one call may take."""

import pytest
import torch

from weft.ops import attention as room
from weft.testing.case import cases

BODIES = {
    "reference": (room.attention, room.attention_dgrad),
    "cpu": (room.attention_cpu, room.attention_cpu_dgrad),
}


@pytest.fixture(params=BODIES)
def bodies(request):
    return BODIES[request.param]


def ragged():
    return cases("attention", torch.float64)["ragged"].inputs


def test_runs_cover_all_tokens_in_order_and_join_only_neighbours_of_one_length():
    found = room.runs(room.segments((3, 6, 7, 10), "cpu"))
    assert [(r.start, r.count, r.length) for r in found] == [(0, 2, 3), (6, 1, 1), (7, 1, 3)]


def test_segments_know_their_longest_document_and_their_edges():
    found = room.segments((2, 7, 9), "cpu")
    assert (found.ends, found.longest) == ((2, 7, 9), 5)
    assert found.cumulative.tolist() == [0, 2, 7, 9]
    assert found.cumulative.dtype == torch.int32


def test_documents_without_tokens_are_refused():
    with pytest.raises(AssertionError, match="must ascend"):
        room.segments((2, 2), "cpu")


def test_a_document_does_not_see_its_neighbours(bodies):
    """Bitwise: the first two and the last documents are untouched by a change of the third."""
    forward, _ = bodies
    q, k, v, documents = ragged()
    before, _ = forward(q, k, v, documents)
    q, k, v = (x.clone() for x in (q, k, v))
    for x in (q, k, v):
        x[2:10] += 1
    after, _ = forward(q, k, v, documents)
    assert torch.equal(before[:2], after[:2])
    assert torch.equal(before[10:], after[10:])
    assert not torch.allclose(before[2:10], after[2:10])


def test_a_gradient_stays_in_its_document(bodies):
    forward, backward = bodies
    q, k, v, documents = ragged()
    a, lse = forward(q, k, v, documents)
    da = torch.zeros_like(a)
    da[2:10] = 1
    for gradient in backward(da, q, k, v, a, lse, documents):
        assert gradient[2:10].any()
        assert not gradient[:2].any()
        assert not gradient[10:].any()


def test_a_token_does_not_see_the_future(bodies):
    forward, _ = bodies
    q, k, v, _ = ragged()
    documents = room.segments((q.shape[0],), "cpu")
    before, _ = forward(q, k, v, documents)
    k, v = k.clone(), v.clone()
    k[20:], v[20:] = 0, 0
    after, _ = forward(q, k, v, documents)
    torch.testing.assert_close(before[:20], after[:20], rtol=1e-14, atol=1e-14)
    assert not torch.allclose(before[20:], after[20:])


def test_one_document_instead_of_six_is_caught():
    """Sabotage: with the edges dropped, attention leaks and the values differ."""
    q, k, v, documents = ragged()
    joined, _ = room.attention(q, k, v, room.segments((q.shape[0],), "cpu"))
    assert not torch.allclose(joined, room.attention(q, k, v, documents)[0])


def test_heads_may_be_strided_views_of_one_tensor(bodies):
    forward, _ = bodies
    packed = torch.randn(24, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k, v = packed.split((4, 2, 2), dim=1)
    documents = room.segments((8, 16, 24), "cpu")
    found, _ = forward(q, k, v, documents)
    wanted, _ = forward(q.contiguous(), k.contiguous(), v.contiguous(), documents)
    assert torch.equal(found, wanted)

from collections import Counter
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.compose import stage
from weft.model.params import parameters
from weft.parallel import zero
from weft.parallel.layout import Attention, FeedForward, Layout
from weft.parallel.zero import ALIGNMENT, ALONE, Bucket, buckets, decayed, pieces
from weft.testing import models
from weft.testing.models import FAMILIES

LAYOUTS = [
    Layout(),
    Layout(dp=2),
    Layout(sp=2, ep=2),
    Layout(dp=2, sp=2, ep=2),
    Layout(dp=2, sp=4, ep=8),
    Layout(dp=3, sp=2, ep=1),
    Layout(dp=4, node=2),
    Layout(dp=4, sp=2, ep=2, node=4),
    Layout(dp=4, sp=2, ep=4, node=2),
    Layout(dp=2, sp=2, attention=Attention.TP, ffn=FeedForward.TP),
    Layout(dp=2, sp=4, ep=8, attention=Attention.TP),  # ranks share key/value heads
]
MOST = 1000  # cuts the experts of a layer in two or more
EVERY = pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.name)


def of_rank(
    layout: Layout, rank: int, family: str = "deepseek", most: int = 10**9
) -> tuple[Bucket, ...]:
    owned = stage.owned(models.plan(FAMILIES[family], layout, rank))
    return buckets(owned, layout, most=most)


@EVERY
def test_every_logical_element_is_in_one_shard_of_one_rank(layout):
    owners: dict[str, Counter[int]] = {}
    for rank in range(layout.world):
        for bucket in of_rank(layout, rank):
            for piece in pieces(bucket, layout.replica(bucket.axis, rank)):
                owners.setdefault(piece.name, Counter()).update(range(piece.start, piece.stop))
    logical = {q.name: q.shape for p in parameters(FAMILIES["deepseek"].shape) for q in p.parts}
    assert owners.keys() == logical.keys()
    for name, shape in logical.items():
        assert owners[name] == Counter(range(prod(shape))), name


@EVERY
def test_pieces_lie_in_their_shard_and_do_not_overlap(layout):
    for bucket in of_rank(layout, 0):
        for replica in range(layout.degree(bucket.axis)):
            end = 0
            for piece in sorted(pieces(bucket, replica), key=lambda p: p.offset):
                assert piece.offset >= end
                end = piece.offset + piece.stop - piece.start
            assert end <= bucket.shard


@EVERY
def test_parameters_and_shards_start_at_16_bytes(layout):
    for bucket in of_rank(layout, 0, most=MOST):
        assert all(slot.start % ALIGNMENT == 0 for slot in bucket.buffer.slots)
        assert bucket.start % ALIGNMENT == bucket.shard % ALIGNMENT == 0
        assert bucket.shard * layout.degree(bucket.axis) == bucket.numel


@EVERY
def test_what_decays_comes_first(layout):
    for bucket in of_rank(layout, 0):
        for slot in bucket.buffer.slots:
            end = slot.start + slot.parameter.numel
            inside = end <= bucket.buffer.decay_stop
            outside = slot.start >= bucket.buffer.decay_stop
            assert inside if slot.parameter.decays else outside


@EVERY
def test_decayed_parts_of_shards_add_up(layout):
    parts: Counter[str] = Counter()
    stops = {}
    for bucket in of_rank(layout, 0, most=MOST):
        stops[bucket.buffer.name] = bucket.buffer.decay_stop
        for replica in range(layout.degree(bucket.axis)):
            assert 0 <= decayed(bucket, replica) <= bucket.shard
            parts[bucket.buffer.name] += decayed(bucket, replica)
    assert dict(parts) == stops


@EVERY
@pytest.mark.parametrize("alone", [MOST, ALONE])
def test_buckets_cover_their_buffer_and_stay_below_their_bound(layout, alone, monkeypatch):
    monkeypatch.setattr(zero, "ALONE", alone)
    covered: dict[str, list[int]] = {}
    for bucket in of_rank(layout, 0, most=MOST):
        unit = layout.degree(bucket.axis) * ALIGNMENT
        most = MOST if layout.degree(bucket.axis) > 1 else alone
        assert bucket.numel <= max(-(-most // unit) * unit, unit)
        covered.setdefault(bucket.buffer.name, []).extend(
            range(bucket.start, bucket.start + bucket.numel)
        )
    whole = {b.buffer.name: b.buffer.numel for b in of_rank(layout, 0)}
    assert {name: list(range(numel)) for name, numel in whole.items()} == covered
    if alone == MOST or layout.degree("dense") > 1:
        assert len(of_rank(layout, 0, most=MOST)) > len(whole)


def test_experts_and_dense_parameters_share_no_bucket():
    axes = {b.name: b.axis for b in of_rank(Layout(dp=2, sp=2, ep=2), 0)}
    assert axes["layers.1.dense"] == "dense"
    assert axes["layers.1.edp"] == "edp"
    assert "layers.0.edp" not in axes, "a dense layer has no experts"


def test_every_rank_has_the_same_buckets():
    layout = Layout(dp=2, sp=2, ep=4)
    shapes = [
        [(b.name, b.numel, b.buffer.decay_stop) for b in of_rank(layout, rank)]
        for rank in range(layout.world)
    ]
    assert all(shape == shapes[0] for shape in shapes)


class Tensor:
    """A parameter of any size."""

    def __init__(self, index: int, numel: int, decays: bool) -> None:
        self.name, self.shape, self.numel, self.decays = f"p{index}", (numel,), numel, decays
        self.segment, self.residence, self.start, self.stop = "all", "dense", 0, numel
        self.parts = (self,)

    def runs(self):
        yield range(self.numel)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 70), st.booleans()), min_size=1, max_size=6),
    degree=st.integers(1, 9),
    node=st.integers(1, 9),
    most=st.integers(1, 200),
)
def test_any_sizes_are_covered_once_over_any_degree(sizes, degree, node, most):
    tensors = [Tensor(i, numel, decays) for i, (numel, decays) in enumerate(sizes)]
    layout = Layout(dp=degree * node, node=node if node > 1 else 0)
    made = buckets(tensors, layout, most=most)
    seen = Counter(
        (piece.name, element)
        for bucket in made
        for replica in range(layout.world)
        for piece in pieces(bucket, replica)
        for element in range(piece.start, piece.stop)
    )
    assert seen == Counter((t.name, i) for t in tensors for i in range(t.numel))
    parts = sum(decayed(bucket, r) for bucket in made for r in range(layout.world))
    assert parts == made[0].buffer.decay_stop

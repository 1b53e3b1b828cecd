from collections import Counter
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.model.params import parameters
from weft.parallel.layout import Layout
from weft.parallel.zero import ALIGNMENT, Bucket, buckets, decayed, pieces
from weft.testing.models import FAMILIES

LAYOUTS = [
    Layout(),
    Layout(dp=2),
    Layout(sp=2, ep=2),
    Layout(dp=2, sp=2, ep=2),
    Layout(dp=2, sp=4, ep=8),
    Layout(dp=3, sp=2, ep=1),
]
EVERY = pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.name)


def of_rank(layout: Layout, rank: int, family: str = "deepseek") -> tuple[Bucket, ...]:
    owned = parameters(FAMILIES[family].shape, ep=layout.ep, ep_rank=layout.ep_rank(rank))
    return buckets(owned, {axis: layout.degree(axis) for axis in ("dense", "edp")})


def position(layout: Layout, bucket: Bucket, rank: int) -> int:
    return rank if bucket.axis == "dense" else rank // layout.ep


@EVERY
def test_every_logical_element_is_in_one_shard_of_one_rank(layout):
    owners: dict[str, Counter[int]] = {}
    for rank in range(layout.world):
        for bucket in of_rank(layout, rank):
            for piece in pieces(bucket, position(layout, bucket, rank)):
                owners.setdefault(piece.name, Counter()).update(range(piece.start, piece.stop))
    logical = {q.name: q.shape for p in parameters(FAMILIES["deepseek"].shape) for q in p.parts}
    assert owners.keys() == logical.keys()
    for name, shape in logical.items():
        assert owners[name] == Counter(range(prod(shape))), name


@EVERY
def test_pieces_lie_in_their_shard_and_do_not_overlap(layout):
    for bucket in of_rank(layout, 0):
        for replica in range(bucket.degree):
            end = 0
            for piece in sorted(pieces(bucket, replica), key=lambda p: p.offset):
                assert piece.offset >= end
                end = piece.offset + piece.stop - piece.start
            assert end <= bucket.shard


@EVERY
def test_parameters_and_shards_start_at_16_bytes(layout):
    for bucket in of_rank(layout, 0):
        assert all(slot.start % ALIGNMENT == 0 for slot in bucket.slots)
        assert bucket.shard % ALIGNMENT == 0
        assert bucket.shard * bucket.degree == bucket.numel


@EVERY
def test_what_decays_comes_first(layout):
    for bucket in of_rank(layout, 0):
        for slot in bucket.slots:
            end = slot.start + slot.parameter.numel
            inside = end <= bucket.decay_stop
            outside = slot.start >= bucket.decay_stop
            assert inside if slot.parameter.decays else outside


@EVERY
def test_decayed_parts_of_shards_add_up(layout):
    for bucket in of_rank(layout, 0):
        parts = [decayed(bucket, replica) for replica in range(bucket.degree)]
        assert sum(parts) == bucket.decay_stop
        assert all(0 <= part <= bucket.shard for part in parts)
        assert parts == sorted(parts, reverse=True)


def test_experts_and_dense_parameters_share_no_bucket():
    axes = {b.name: b.axis for b in of_rank(Layout(dp=2, sp=2, ep=2), 0)}
    assert axes["layers.1.dense"] == "dense"
    assert axes["layers.1.edp"] == "edp"
    assert "layers.0.edp" not in axes, "a dense layer has no experts"


def test_every_rank_has_the_same_buckets():
    layout = Layout(dp=2, sp=2, ep=4)
    shapes = [
        [(b.name, b.numel, b.decay_stop) for b in of_rank(layout, rank)]
        for rank in range(layout.world)
    ]
    assert all(shape == shapes[0] for shape in shapes)


class Tensor:
    """A parameter of any size."""

    def __init__(self, index: int, numel: int, decays: bool) -> None:
        self.name, self.shape, self.numel, self.decays = f"p{index}", (numel,), numel, decays
        self.segment, self.residence, self.start, self.stop = "all", "dense", 0, numel
        self.parts = (self,)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 70), st.booleans()), min_size=1, max_size=6),
    degree=st.integers(1, 9),
)
def test_any_sizes_are_covered_once_over_any_degree(sizes, degree):
    tensors = [Tensor(i, numel, decays) for i, (numel, decays) in enumerate(sizes)]
    (bucket,) = buckets(tensors, {"dense": degree})
    seen = Counter(
        (piece.name, element)
        for replica in range(degree)
        for piece in pieces(bucket, replica)
        for element in range(piece.start, piece.stop)
    )
    assert seen == Counter((t.name, i) for t in tensors for i in range(t.numel))
    assert sum(decayed(bucket, r) for r in range(degree)) == bucket.decay_stop

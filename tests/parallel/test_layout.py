from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.comm.mesh import Mesh, memberships
from weft.errors import LayoutError
from weft.parallel.layout import Dispatch, HeadSplit, Layout, split_heads


def test_every_axis_has_its_degree():
    layout = Layout(dp=2, sp=4, ep=2)
    degrees = {axis: layout.degree(axis) for axis in ("sp", "ep", "dense", "edp", "world")}
    assert degrees == {"sp": 4, "ep": 2, "dense": 8, "edp": 4, "world": 8}


def test_neighbours_hold_different_experts():
    layout = Layout(dp=2, sp=2, ep=2)
    assert [layout.ep_rank(rank) for rank in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize("node", [0, 1, 2, 4, 8])
def test_legs_multiply_to_the_replicas(node):
    layout = Layout(dp=4, sp=2, ep=4, node=node)
    for residence, replicas in (("dense", 8), ("edp", 2)):
        legs = layout.legs(residence)
        assert prod(leg.ranks for leg in legs) == replicas
        assert all(layout.degree(leg.axis) == leg.ranks for leg in legs)


def test_degrees_are_those_of_the_mesh():
    layout = Layout(dp=4, sp=2, ep=2, node=4)
    mesh = Mesh(dp=4, sp=2, ep=2, node=4)
    found = {axis: len(member.ranks) for axis, member in memberships(mesh, 0).items()}
    assert found == {axis: layout.degree(axis) for axis in found}


def test_a_name_says_what_is_cut():
    assert Layout().name() == "one rank"
    assert Layout(sp=2, ep=2).name() == "sp2 ep2 all_to_all"
    assert Layout(dp=2, dispatch=Dispatch.ALL_GATHER).name() == "dp2"


def test_sp_must_divide_the_query_heads():
    with pytest.raises(LayoutError, match=r"sp = 3 does not divide the 4 query heads; try sp = 2"):
        split_heads(4, 4, 3)


def test_sp_and_kv_heads_must_divide_one_another():
    with pytest.raises(LayoutError, match=r"sp = 4 neither divides the 6 .* try sp = 3"):
        split_heads(12, 6, 4)


def test_more_ranks_than_kv_heads_replicate_them():
    assert split_heads(8, 2, 4) == HeadSplit(heads=2, kv_heads=1, replicas=2)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_a_legal_split_covers_every_head(groups, kv_heads, sp):
    heads = groups * kv_heads
    try:
        split = split_heads(heads, kv_heads, sp)
    except LayoutError as error:
        suggested = int(str(error).rpartition("= ")[2])
        assert 1 <= suggested < sp
        return
    assert split.heads * sp == heads
    assert split.kv_heads * sp == kv_heads * split.replicas

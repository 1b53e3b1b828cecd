"""Both ends of a pair cut a block alike, and no byte is left behind."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.comm.route import cut, find_route, in_turn

SLOTS = st.sampled_from([16, 64, 4096, 12288, 1 << 24])


@given(slot_bytes=SLOTS, whole=st.integers(0, 40), part=st.floats(0, 1))
def test_pieces_fill_a_block_and_fit_their_slots(slot_bytes, whole, part):
    size = int((whole + part) * slot_bytes)
    pieces = cut(size, slot_bytes)
    assert pieces[0].first == 0
    assert all(one.first + one.size == two.first for one, two in pairwise(pieces))
    assert pieces[-1].first + pieces[-1].size == size
    assert all(0 < piece.size <= slot_bytes for piece in pieces) or size == 0
    assert all(piece.first % 8 == 0 for piece in pieces if slot_bytes >= 64)


@given(whole=st.integers(1, 40), part=st.floats(0.01, 1))
def test_the_last_of_several_pieces_is_short(whole, part):
    slot_bytes = 1 << 24
    sizes = [piece.size for piece in cut(int((whole + part) * slot_bytes), slot_bytes)]
    assert sizes[-1] <= slot_bytes // 4
    assert len(sizes) <= whole + 2
    assert all(size == sizes[0] > slot_bytes // 3 for size in sizes[:-1])


@pytest.mark.parametrize("n", [2, 5])
def test_the_pieces_of_a_pair_are_the_same_on_both_ends(n):
    sizes = [[(7 * i + 3 * j) % 5 * 30 for j in range(n)] for i in range(n)]
    columns = list(zip(*sizes, strict=True))
    routes = [
        find_route(in_turn(sizes[i]), in_turn(columns[i]), position=i, slot_bytes=16)
        for i in range(n)
    ]
    for i in range(n):
        for j in set(range(n)) - {i}:
            pushed = [p.size for one in routes[i] for p in one.pushes if p.peer == j]
            landed = [p.size for one in routes[j] for p in one.lands if p.peer == i]
            assert pushed == landed
            assert sum(pushed) == sizes[i][j]


def test_a_route_starts_with_the_neighbour():
    (only,) = find_route(in_turn([4, 5, 6]), in_turn([1, 5, 3]), position=1, slot_bytes=16)
    assert [piece.peer for piece in only.pushes] == [2, 0]
    assert [piece.peer for piece in only.lands] == [2, 0]


@pytest.mark.parametrize("size", [0, 5, 4096, 100_000])
def test_what_is_kept_is_shared_out_over_the_rounds(size):
    sends, lands = in_turn([100, size, 7]), in_turn([3, size, 200])
    route = find_route(sends, lands, position=1, slot_bytes=64)
    assert len(route) == 4
    assert sum(one.own.size for one in route) == size
    for one in route:
        assert one.own.first - 100 == one.home.first - 3
        assert one.own.size == one.home.size
    kept = [one.own for one in route if one.own.size]
    assert all(one.first + one.size == two.first for one, two in pairwise(kept))

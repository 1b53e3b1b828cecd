"""A cut is least, checked against every subset of small networks."""

import random
from itertools import combinations

import pytest

from weft.schedule.cut import SINK, SOURCE, Edge, minimum_cut

NODES = "abcde"


def cost(edges: list[Edge], side: set) -> int:
    return sum(c for one, other, c in edges if one in side and other not in side)


def every_side() -> list[set]:
    return [{SOURCE, *some} for n in range(len(NODES) + 1) for some in combinations(NODES, n)]


def network(seed: int) -> list[Edge]:
    chance = random.Random(seed)
    nodes = (SOURCE, *NODES, SINK)
    pairs = [(one, other) for one in nodes for other in nodes if one not in (other, SINK)]
    return [(*pair, chance.randrange(9)) for pair in chance.sample(pairs, 14)]


@pytest.mark.parametrize("seed", range(40))
def test_no_side_is_cheaper_and_of_the_cheapest_none_is_smaller(seed):
    edges = network(seed)
    total, side = minimum_cut(edges)
    assert total == cost(edges, set(side))
    best = min(cost(edges, other) for other in every_side())
    assert total == best
    assert all(side <= other for other in every_side() if cost(edges, other) == best)


def test_parallel_edges_add_up():
    assert minimum_cut([(SOURCE, SINK, 2), (SOURCE, SINK, 3)])[0] == 5


def test_no_way_costs_nothing():
    assert minimum_cut([(SOURCE, "a", 5), ("b", SINK, 5)]) == (0, frozenset({SOURCE, "a"}))

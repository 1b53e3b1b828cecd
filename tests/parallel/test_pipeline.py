from itertools import combinations, pairwise

import pytest

from weft.errors import LayoutError
from weft.parallel.pipeline import cut_layers, spans


def dearest(costs, counts, first, last):
    sums = [sum(costs[i] for i in span) for span in spans(counts)]
    sums[0] += first
    sums[-1] += last
    return max(sums)


@pytest.mark.parametrize("costs", [[1.0] * 7, [3.0, 1.0, 1.0, 2.0, 2.0, 1.0], [1.0, 5.0, 1.0, 1.0]])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize(("first", "last"), [(0.0, 0.0), (0.5, 2.5)])
def test_no_cut_has_a_cheaper_dearest_stage(costs, stages, first, last):
    found = cut_layers(costs, stages, first=first, last=last)
    assert sum(found) == len(costs)
    every = combinations(range(1, len(costs)), stages - 1)
    cuts = [(0, *at, len(costs)) for at in every]
    counts = [[b - a for a, b in pairwise(cut)] for cut in cuts]
    best = min(dearest(costs, count, first, last) for count in counts)
    assert dearest(costs, found, first, last) == best


def test_equal_layers_are_spread_evenly():
    assert sorted(cut_layers([1.0] * 10, 4)) == [2, 2, 3, 3]


def test_a_dear_head_takes_layers_away_from_the_last_stage():
    assert cut_layers([1.0] * 60, 15)[-1] == 4
    assert cut_layers([1.0] * 60, 15, last=2.0)[-1] == 2


def test_more_stages_than_layers_are_refused():
    with pytest.raises(LayoutError, match="4 stages for 3 layers; try at most 3"):
        cut_layers([1.0] * 3, 4)

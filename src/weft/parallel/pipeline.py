"""Which layers a stage of a pipeline holds: a cut of the model by what its parts cost.

The embedding is in front of the first stage and the head behind the last, so the stages at the ends
get fewer layers. A pipeline runs at the pace of its dearest stage: that one is made as cheap as a
cut between layers can make it, and among the cuts that do so the layers are spread evenly.

Paper: 1.5 (4 layers a stage of 15).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate

from weft.errors import LayoutError

Cut = tuple[float, float, int]


def cut_layers(
    costs: Sequence[float], stages: int, *, first: float = 0.0, last: float = 0.0
) -> tuple[int, ...]:
    """How many layers each stage holds, at least one; `first` and `last` are what the embedding and
    the head cost.

    Raises:
        LayoutError: more stages than layers.

    Example:
        >>> cut_layers([1.0] * 8, 4)
        (2, 2, 2, 2)
        >>> cut_layers([1.0] * 8, 4, last=2.0)
        (3, 2, 2, 1)
    """
    if stages > len(costs):
        raise LayoutError(
            f"parallel.pp * parallel.chunks = {stages} stages for {len(costs)} layers; "
            f"try at most {len(costs)} of them"
        )
    ends = (0.0, *accumulate(costs))

    def cost(stage: int, start: int, stop: int) -> float:
        extra = first * (stage == 0) + last * (stage == stages - 1)
        return ends[stop] - ends[start] + extra

    # of the cut of layers [start, end) into the stages from one on: its dearest stage, the sum of
    # squares, where its first stage stops
    count = len(costs)
    best: dict[int, Cut] = {}
    for start in range(count):
        alone = cost(stages - 1, start, count)
        best[start] = (alone, alone**2, count)
    cuts = [best]
    for stage in reversed(range(stages - 1)):
        best = {
            start: _first_stop(partial(cost, stage, start), start, best)
            for start in range(stage, count - (stages - stage) + 1)
        }
        cuts.append(best)
    return tuple(_sizes(reversed(cuts)))


def _first_stop(cost: Callable[[int], float], start: int, behind: Mapping[int, Cut]) -> Cut:
    """The best place to end a stage, given the best cut behind each; the last one of equals."""
    options = ((cost(stop), stop) for stop in behind if stop > start)
    worst, squares, stop = min(
        (max(here, behind[stop][0]), here**2 + behind[stop][1], -stop) for here, stop in options
    )
    return worst, squares, -stop


def _sizes(cuts: Iterable[Mapping[int, Cut]]) -> Iterator[int]:
    start = 0
    for best in cuts:
        stop = best[start][2]
        yield stop - start
        start = stop


def spans(counts: Sequence[int]) -> tuple[range, ...]:
    """The layers of each stage.

    Example:
        >>> spans((3, 1))
        (range(0, 3), range(3, 4))
    """
    stops = tuple(accumulate(counts))
    return tuple(range(stop - count, stop) for count, stop in zip(counts, stops, strict=True))

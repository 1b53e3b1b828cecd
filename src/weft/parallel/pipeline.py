"""Which layers a stage of a pipeline holds: a cut of the model by what its parts cost.

The embedding is in front of the first stage and the head behind the last, so the stages at the ends
get fewer layers. A pipeline runs at the pace of its dearest stage: that one is made as cheap as a
cut between layers can make it, and among the cuts that do so the layers are spread evenly.

Paper: 1.5 (4 layers a stage of 15).
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

from weft.errors import LayoutError


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

    @cache
    def best(stage: int, start: int) -> tuple[float, float, tuple[int, ...]]:
        """The dearest stage, the sum of squares and the sizes of the best cut from here on."""
        if stage == stages - 1:
            alone = cost(stage, start, len(costs))
            return alone, alone**2, (len(costs) - start,)
        options: list[tuple[float, float, tuple[int, ...]]] = []
        for stop in range(start + 1, len(costs) - (stages - stage - 1) + 1):
            here, (worst, squares, sizes) = cost(stage, start, stop), best(stage + 1, stop)
            options.append((max(here, worst), here**2 + squares, (start - stop, *sizes)))
        worst, squares, sizes = min(options)
        return worst, squares, (abs(sizes[0]), *sizes[1:])

    return best(0, 0)[2]


def spans(counts: Sequence[int]) -> tuple[range, ...]:
    """The layers of each stage.

    Example:
        >>> spans((3, 1))
        (range(0, 3), range(3, 4))
    """
    stops = tuple(accumulate(counts))
    return tuple(range(stop - count, stop) for count, stop in zip(counts, stops, strict=True))

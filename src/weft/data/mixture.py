"""Several streams in fixed proportions: whose turn it is at a position, as integer arithmetic.

    position p           0 1 2 3 4 5 6 7 8 9 ...
    weights 3 : 1 : 1    0 0 1 0 2 0 0 1 0 2 ...     whose sample it is
    index in its own     0 1 0 2 0 3 4 1 5 1 ...     its samples in order, epoch after epoch

Of any two streams, one against all that come behind it, the first has floor((p w + phase) / W)
of the first p positions. So each has its share of every stretch of the run, a sample or two more
or less, and the turn at a position is known without those before it: a run goes on anywhere.
"""

from dataclasses import dataclass

import numpy as np

from weft.data.stream import TokenStream

_UNIT = 1 << 20  # weights are counted in millionths or so: no floating point decides a turn
_STREAM = 2  # of random bits; 0 and 1 shuffle documents and samples


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mixture:
    """Streams and their weights, as integers of any sum."""

    streams: tuple[TokenStream, ...]
    weights: tuple[int, ...]


def whole_weights(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Weights as integers in the same proportions, none of them 0.

    Example:
        >>> whole_weights((3.0, 1.0))
        (786432, 262144)
    """
    total = sum(weights)
    return tuple(max(1, round(weight / total * _UNIT)) for weight in weights)


def draw_phases(weights: tuple[int, ...], *, seed: int) -> tuple[int, ...]:
    """Where in its rhythm each stream starts, from the seed; one less than there are streams."""
    words = np.random.Philox(np.random.SeedSequence([seed, 0, _STREAM])).random_raw(len(weights))
    below = [sum(weights[index:]) for index in range(len(weights) - 1)]
    return tuple(int(word) % total for word, total in zip(words, below, strict=False))


def turn(position: int, weights: tuple[int, ...], phases: tuple[int, ...]) -> tuple[int, int]:
    """Whose turn a position is, and how many turns that stream had before it.

    Example:
        >>> [turn(p, (3, 1), (0,)) for p in range(5)]
        [(1, 0), (0, 0), (0, 1), (0, 2), (1, 1)]
    """
    left = sum(weights)
    for index, (weight, phase) in enumerate(zip(weights, phases, strict=False)):
        before = (position * weight + phase) // left
        if (position * weight + weight + phase) // left > before:
            return index, before
        position -= before
        left -= weight
    return len(weights) - 1, position

"""Which sample stands where: the order of samples over a whole run, as arithmetic on the seed.

    position p = 0, 1, 2, ...    counts samples over the whole run, across epochs
    epoch      = p // samples in an epoch
    sample     = shuffled(seed, epoch)[p % samples in an epoch]
    step s     = positions [s GB, (s + 1) GB), in micro-batches of consecutive positions

Nothing here knows a rank: a layout only decides who runs which micro-batch, so every layout and
every chain of stops and resumes trains the same sequence, and the number of the step is all that a
checkpoint has to keep.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

# One stream of random bits for each thing that is shuffled, so that the two orders are independent.
_STREAM = {"documents": 0, "samples": 1, "held": 3}  # 2 is the mixture's


def shuffled(
    count: int,
    *,
    seed: int,
    epoch: int,
    what: Literal["documents", "samples", "held"],
    component: int = 0,
) -> NDArray[np.int64]:
    """A permutation of `count` things that depends on nothing but seed, epoch and what is shuffled.

    `component` says which stream of a mixture they are of; a run of one stream has the first.

    The rank of raw Philox words, because numpy keeps raw streams stable over its versions (NEP 19),
    and makes no such promise for `Generator.permutation`.

    Example:
        >>> shuffled(5, seed=0, epoch=0, what="samples").tolist()
        [4, 1, 2, 0, 3]
        >>> sorted(shuffled(5, seed=0, epoch=1, what="samples").tolist())
        [0, 1, 2, 3, 4]
    """
    key = [seed, epoch, _STREAM[what], *([component] if component else [])]
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(words, kind="stable")


def step_positions(step: int, *, global_batch: int) -> range:
    """The positions of the samples of a step, counted from step 0.

    Example:
        >>> step_positions(3, global_batch=4)
        range(12, 16)
    """
    assert step >= 0, f"{step=}"
    return range(step * global_batch, (step + 1) * global_batch)


def micro_batches(num_micro_batches: int, *, dp_rank: int, dp: int) -> range:
    """The micro-batches of a step that a data-parallel rank runs: an equal, consecutive share.

    Example:
        >>> micro_batches(8, dp_rank=1, dp=4)
        range(2, 4)
    """
    assert 0 <= dp_rank < dp, f"{dp_rank=} {dp=}"
    assert num_micro_batches % dp == 0, f"{num_micro_batches=} {dp=}"
    share = num_micro_batches // dp
    return range(dp_rank * share, (dp_rank + 1) * share)

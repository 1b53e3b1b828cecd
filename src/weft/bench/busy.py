"""How much of a step a GPU does nothing: no kernel and no copy of its own runs, on any stream.

Torch's profiler says when each of them began and ended. Marks between bodies cannot tell: they take
time themselves, and steps that wait for them run cooler, thus faster, than those that do not.
"""

from collections.abc import Iterable

import torch
from torch.profiler import ProfilerActivity, profile

from weft.bench.rig import Rig

STEPS = 3  # one behind the other, as in training

Stretch = tuple[float, float]  # begin, end, in any unit


def idle(rig: Rig) -> float | None:
    """The share of a few steps in which nothing ran on this rank's device; None where torch's
    profiler may not look at it.
    """
    rig.transport.barrier()
    torch.cuda.synchronize(rig.place.device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(STEPS):
            rig.stage.bound.run(rig.environment())
        torch.cuda.synchronize(rig.place.device)
    return uncovered(
        (event.time_range.start, event.time_range.end)
        for event in seen.events() or ()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    )


def uncovered(stretches: Iterable[Stretch]) -> float | None:
    """The share of the time from the first begin to the last end that lies in no stretch; None
    where there is none.

    Example:
        >>> uncovered([(0, 2), (1, 4), (5, 8), (6, 7)])
        0.125
    """
    ordered = sorted(stretches)
    if not ordered:
        return None
    begun, end = ordered[0]
    gaps = 0.0
    for start, stop in ordered:
        gaps += max(start - end, 0.0)
        end = max(end, stop)
    return gaps / (end - begun)

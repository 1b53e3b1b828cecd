"""How large a step is: linear warm-up, then a cosine down to a floor.

update s = 0 .. warmup - 1       rate / peak = (s + 1) / warmup
update s = warmup .. total - 1   rate / peak = floor + (1 - floor) (1 + cos(pi x)) / 2,
                                 x = (s + 1 - warmup) / (total - warmup)
"""

import math


def learning_rate(step: int, *, peak: float, floor_ratio: float, warmup: int, total: int) -> float:
    """The learning rate of update `step`, counted from 0.

    The last update of the warm-up has the peak, the last of all the floor, and so has any after it.

    Example:
        >>> shape = {"peak": 1.0, "floor_ratio": 0.1, "warmup": 2, "total": 6}
        >>> [round(learning_rate(step, **shape), 3) for step in range(7)]
        [0.5, 1.0, 0.868, 0.55, 0.232, 0.1, 0.1]
    """
    if step < warmup:
        return peak * ((step + 1) / warmup)
    progress = min(1.0, (step + 1 - warmup) / max(1, total - warmup))
    return peak * (floor_ratio + (1 - floor_ratio) * (1 + math.cos(math.pi * progress)) / 2)

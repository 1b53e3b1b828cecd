"""How large a step is: a linear warm-up, then down a cosine, or level and down at the end.

update s = 0 .. warmup - 1       rate / peak = (s + 1) / warmup
after it, x from 0 to 1          rate / peak = floor + (1 - floor) f(x)

    cosine                       f(x) = (1 + cos(pi x)) / 2, x = (s + 1 - warmup) / (total - warmup)
    warm-up-stable-decay         f(x) = 1 - sqrt(x),         x = (s + 1 - (total - decay)) / decay
                                 and 1 before the last `decay` updates

Paper:
    Warm-up-stable-decay is of MiniCPM (arXiv 2404.06395); the shape 1 - sqrt(x) is the one that
    "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (arXiv 2405.18392)
    found to end lower than a line.
"""

import math

from weft.config.optim import OptimConfig


def scheduled(optim: OptimConfig, step: int, *, total: int) -> float:
    """The learning rate of update `step`, counted from 0, of a run of `total` updates."""
    peak, floor_ratio, warmup = optim.lr, optim.min_lr_ratio, optim.warmup_steps
    if optim.schedule == "cosine":
        return learning_rate(step, peak=peak, floor_ratio=floor_ratio, warmup=warmup, total=total)
    assert optim.decay_steps is not None, "a recipe with this schedule has one"
    return stable_rate(
        step,
        peak=peak,
        floor_ratio=floor_ratio,
        warmup=warmup,
        total=total,
        decay=optim.decay_steps,
    )


def learning_rate(step: int, *, peak: float, floor_ratio: float, warmup: int, total: int) -> float:
    """The rate of an update under warm-up and cosine.

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


def stable_rate(
    step: int, *, peak: float, floor_ratio: float, warmup: int, total: int, decay: int
) -> float:
    """The rate of an update under warm-up, stable and decay.

    While it is level a run may be given more steps: nothing before the decay depends on `total`.

    Example:
        >>> shape = {"peak": 1.0, "floor_ratio": 0.0, "warmup": 2, "total": 8, "decay": 4}
        >>> [round(stable_rate(step, **shape), 3) for step in range(9)]
        [0.5, 1.0, 1.0, 1.0, 0.5, 0.293, 0.134, 0.0, 0.0]
    """
    if step < warmup:
        return peak * ((step + 1) / warmup)
    progress = min(1.0, max(0.0, (step + 1 - (total - decay)) / decay))
    return peak * (floor_ratio + (1 - floor_ratio) * (1 - math.sqrt(progress)))

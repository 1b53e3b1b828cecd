"""What loss and gradient norm a step may have: those of the steps before, and some deviations more.

A step above is refused like one that is not finite. The bounds come from the 128 steps up to the
one before the last, whatever the device: a run that was resumed has the same ones.
"""

import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any, final

from weft.compose.plan import LOSS_BOUND, NORM2_BOUND

WINDOW = 128  # steps, as in OLMo-core's skip-step optimizers
_LAG = 2  # on CUDA the last step is still on its way when the next one begins


@final
class Window:
    """The last steps that were taken: their losses and gradient norms."""

    def __init__(self, sigmas: float | None) -> None:
        self._sigmas = sigmas
        self._taken: deque[tuple[int, float, float]] = deque(maxlen=WINDOW + _LAG)

    def add(self, line: Mapping[str, Any]) -> None:
        """Remembers the record of a step, unless it was refused."""
        if not line["skipped"] and line["loss"] is not None and line["grad_norm"] is not None:
            self._taken.append((line["step"], line["loss"], line["grad_norm"]))

    def bounds(self, step: int) -> Mapping[int, float]:
        """What the first rank notes for a step; nothing before the window is full."""
        if self._sigmas is None:
            return {}
        known = [taken for taken in self._taken if taken[0] <= step - _LAG][-WINDOW:]
        if len(known) < WINDOW:
            return {}
        loss = _largest([taken[1] for taken in known], self._sigmas)
        norm = _largest([taken[2] for taken in known], self._sigmas)
        return {LOSS_BOUND: 1 / loss, NORM2_BOUND: 1 / norm**2}


def _largest(values: list[float], sigmas: float) -> float:
    return statistics.fmean(values) + sigmas * statistics.stdev(values)

"""What repeats of one measurement come to: never one number without its spread."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The least, the median and the 90th percentile of some repeats, in the unit they came in."""

    least: float
    median: float
    p90: float
    repeats: int

    def scaled(self, factor: float) -> "Spread":
        """The same in another unit."""
        return Spread(
            least=self.least * factor,
            median=self.median * factor,
            p90=self.p90 * factor,
            repeats=self.repeats,
        )

    def text(self, digits: int = 2) -> str:
        """The three numbers as a table shows them."""
        return f"{self.median:.{digits}f} ({self.least:.{digits}f} to {self.p90:.{digits}f})"

    def record(self) -> dict[str, float]:
        """The same as JSON."""
        return {
            "min": self.least,
            "median": self.median,
            "p90": self.p90,
            "repeats": self.repeats,
        }


def spread(values: Sequence[float]) -> Spread:
    """The spread of some repeats.

    Example:
        >>> spread([3.0, 1.0, 2.0]).median
        2.0
    """
    assert values, "no repeats, no spread"
    ordered = sorted(values)
    return Spread(
        least=ordered[0],
        median=statistics.median(ordered),
        p90=ordered[min(len(ordered) - 1, int(len(ordered) * 0.9))],
        repeats=len(ordered),
    )

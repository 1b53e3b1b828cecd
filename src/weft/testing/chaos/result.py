"""What a check of a promise comes to: what was really tried, what broke, whether it could fail.

A check that cannot fail proves nothing. So each one counts what it has exercised, and carries a
control: the same check with the promise broken on purpose, which has to be found.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much of everything: from the size of CI (scale 0) to the full one (scale 1)."""

    folder: Path
    scale: float
    seed: int
    limit: int = 10**9

    def of(self, small: int, full: int) -> int:
        """A count between two, by the scale, and no more than the limit."""
        return min(self.limit, round(small + (full - small) * self.scale))


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A promise and how it fared."""

    promise: str
    counts: Mapping[str, int]
    faults: Sequence[str]
    control: str  # what the sabotage came to; empty where it was not found

    @property
    def holds(self) -> bool:
        """Whether nothing broke, and something could have."""
        return not self.faults and bool(self.control)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        verdict = "holds" if self.holds else "BROKEN"
        lines = [f"{verdict:<7} {self.promise}: {counts}; control: {self.control or 'NOT FOUND'}"]
        return "\n".join([*lines, *(f"        {fault}" for fault in self.faults[:10])])


Check = Callable[[Size], Result]

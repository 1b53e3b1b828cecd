"""What a check of a promise comes to: what was really tried, what broke, whether it could fail.

A check that cannot fail proves nothing. So each one counts what it has exercised, and carries a
control: the same check with the promise broken on purpose, which has to be found. The trials of a
check are numbered, and a share of the numbers is a check of its own: counts of shares add up.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much of everything: from the size of CI (scale 0) to the full one (scale 1)."""

    folder: Path
    scale: float
    seed: int
    limit: int = 10**9
    share: tuple[int, int] = (0, 1)  # which one, of how many

    def of(self, small: int, full: int) -> int:
        """A count between two, by the scale, and no more than the limit."""
        return min(self.limit, round(small + (full - small) * self.scale))

    def trials(self, small: int, full: int) -> range:
        """The numbers of the trials of this share; all shares have each number once.

        Example:
            >>> shares = [Size(folder=Path(), scale=1, seed=0, share=(n, 3)) for n in range(3)]
            >>> [list(share.trials(2, 8)) for share in shares]
            [[0, 1], [2, 3, 4], [5, 6, 7]]
        """
        number, shares = self.share
        total = self.of(small, full)
        return range(total * number // shares, total * (number + 1) // shares)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A promise and how it fared.

    `counts` add up over shares, of `peaks` the highest is told. So many faults as `allowed` are
    within the promise.
    """

    promise: str
    counts: Mapping[str, int]
    faults: Sequence[str]
    control: str  # what the sabotage came to; empty where it was not found
    peaks: Mapping[str, int] = field(default_factory=dict)
    allowed: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether nothing broke, and something could have."""
        return len(self.faults) <= self.allowed and bool(self.control)

    def __str__(self) -> str:
        figures = {**self.counts, **self.peaks}
        counts = ", ".join(f"{count} {name}" for name, count in figures.items())
        verdict = "holds" if self.holds else "BROKEN"
        lines = [f"{verdict:<7} {self.promise}: {counts}; control: {self.control or 'NOT FOUND'}"]
        return "\n".join([*lines, *(f"        {fault}" for fault in self.faults[:10])])


Check = Callable[[Size], Result]


def add_up(shares: Sequence[Result]) -> Result:
    """The whole of a check from its shares; its control was found if every share found it."""
    counts: Counter[str] = Counter()
    peaks: dict[str, int] = {}
    for share in shares:
        counts.update(share.counts)
        peaks = {name: max(peaks.get(name, value), value) for name, value in share.peaks.items()}
    found = all(share.control for share in shares)
    return Result(
        promise=shares[0].promise,
        counts=counts,
        faults=[fault for share in shares for fault in share.faults],
        control=shares[0].control if found else "",
        peaks=peaks,
        allowed=sum(share.allowed for share in shares),
    )

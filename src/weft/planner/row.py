"""Rows of the published figures: what was measured, what is predicted, and how far apart they are.

A row is known by figure, system, model, machine, GPUs, configuration and metric. `published.toml`
holds the rows that constants may be fitted to.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Key:
    """What a figure is of."""

    figure: str
    system: str
    model: str
    machine: str
    gpus: int
    config: str
    metric: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One predicted figure, and the published one where there is one."""

    key: Key
    unit: str
    predicted: float
    published: float | None = None

    @property
    def error(self) -> float | None:
        """Predicted over published, less one."""
        return None if not self.published else self.predicted / self.published - 1

    def record(self) -> dict[str, Any]:
        """The row as JSON."""
        names = ("figure", "system", "model", "machine", "gpus", "config", "metric")
        known = {name: getattr(self.key, name) for name in names}
        return {
            **known,
            "unit": self.unit,
            "predicted": self.predicted,
            "published": self.published,
            "error": self.error,
        }


@cache
def published() -> Mapping[Key, float]:
    """Every published row that may be used."""
    text = files("weft.planner").joinpath("published.toml").read_text(encoding="utf-8")
    found: dict[Key, float] = {}
    for row in tomllib.loads(text)["row"]:
        value = row.pop("value")
        row.pop("unit")
        found[Key(**row)] = float(value)
    return found


def beside_published(rows: Iterable[Row]) -> list[Row]:
    """The rows with the published values beside them."""
    known = published()
    return [replace(row, published=known.get(row.key)) for row in rows]


def is_trivial(row: Row) -> bool:
    """Whether a row is 1 by definition: what the others of its figure are measured in."""
    return row.key.metric in ("throughput", "mfu") and row.predicted == 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How far predictions are from what was published."""

    rows: int
    median: float
    largest: float


def fit(rows: Sequence[Row]) -> Fit:
    """Absolute errors of the rows that have a published value and are not 1 by definition."""
    errors = [abs(row.error) for row in rows if row.error is not None and not is_trivial(row)]
    if not errors:
        return Fit(rows=0, median=0.0, largest=0.0)
    return Fit(rows=len(errors), median=median(errors), largest=max(errors))

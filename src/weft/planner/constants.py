"""The constants that machines share where nothing was measured on them: few, and each has a reason.

They are fractions of a machine's own peaks, times and counts, never times of one figure. The values
lie in `constants.toml`; those marked `fitted` there were fitted to the published rows of
`published.toml` (`planner.fit`), the others are measured on an H200 or stated.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from weft.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """What the cost model needs beside a machine."""

    product: float
    attention: float
    stream: float
    rows: float
    sums: float
    gap: float
    ring: float
    exchange: float
    latency: float
    direct: float
    wire_share: float
    network: float
    skew: float
    imbalance: float
    fragments: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One constant of the file: its value, whether it was fitted, and why it is what it is."""

    name: str
    value: float
    fitted: bool
    reason: str


@cache
def entries() -> tuple[Entry, ...]:
    """Every constant with its reason, as the file has them.

    Raises:
        ConfigError: the file and the fields of `Constants` differ.
    """
    text = files("weft.planner").joinpath("constants.toml").read_text(encoding="utf-8")
    tree: Mapping[str, Mapping[str, Any]] = tomllib.loads(text)
    expected = {field.name for field in fields(Constants)}
    if set(tree) != expected:
        raise ConfigError(f"constants.toml has {sorted(tree)}, expected {sorted(expected)}")
    return tuple(
        Entry(name=name, value=row["value"], fitted=row["fitted"], reason=row["reason"])
        for name, row in tree.items()
    )


def constants() -> Constants:
    """The constants of the file."""
    return Constants(**{entry.name: entry.value for entry in entries()})

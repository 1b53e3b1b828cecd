"""The constants that make the predictions of the published rows best, and how sure they are.

    minimise  sum over rows of (log predicted - log published)^4
              over the logarithms of the fitted constants, each inside its bounds

The fourth power, because the largest error is what a reader meets; by a search along each constant
in turn, with steps that are halved: tiles make the sum a staircase, on which derivatives mean
nothing. Rows that say the same thing twice (a throughput beside its time) count once. `without`
leaves one figure out and predicts it: what an overfit would not survive.
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from math import exp, log

from weft.planner.constants import Constants, entries
from weft.planner.row import Fit, Key, Row, fit, is_trivial

Predict = Callable[[Constants], Sequence[Row]]

# Where a constant can lie and still mean what its reason says.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "product": (0.5, 1.0),
    "attention": (0.2, 0.8),
    "stream": (0.03, 0.9),
    "rows": (0.005, 0.9),
    "sums": (0.005, 0.9),
    "gap": (2e-6, 2e-4),
    "ring": (0.3, 0.95),
    "exchange": (0.3, 0.95),
    "latency": (5e-6, 6e-5),
    "direct": (0.4, 0.95),
    "wire_share": (0.02, 0.5),
    "network": (0.3, 1.0),
    "skew": (1e-6, 3e-4),
    "imbalance": (1.0, 1.5),
    "fragments": (0.0, 0.3),
}
# what follows from a time that is a row of its own, and sums of rows
DERIVED = frozenset(
    {
        ("table3", "ktok_s"),
        ("table3", "speedup"),
        ("fig13", "mfu_pct"),
        ("fig17", "total_gb"),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """Constants, and the rows they were fitted to with their predictions."""

    constants: Constants
    rows: tuple[Row, ...]
    loss: float


def counted(row: Row) -> bool:
    """Whether a row counts in the fit."""
    return (
        bool(row.published)
        and (row.key.figure, row.key.metric) not in DERIVED
        and not is_trivial(row)
    )


def fit_constants(
    predict: Predict,
    start: Constants,
    names: Sequence[str] | None = None,
    *,
    counts: Callable[[Row], bool] = counted,
    step: float = 0.2,
    finest: float = 0.01,
) -> Fitted:
    """Fits the named constants, or those of the file that are marked, from a start."""
    names = names or [entry.name for entry in entries() if entry.fitted]
    best = _tried(predict, start, counts)
    ways = dict.fromkeys(names, 1.0)  # up first where up went well
    while step > finest:
        before = best.loss
        for name in names:
            for way in (ways[name], -ways[name]):
                found = _tried(predict, _moved(best.constants, name, way * step), counts)
                if found.loss < best.loss:
                    best, ways[name] = found, way
                    break
        if best.loss > before * (1 - ENOUGH):
            step /= 2
    return best


ENOUGH = 0.01  # less gain than this in a round, and steps are halved


def _tried(predict: Predict, constants: Constants, counts: Callable[[Row], bool]) -> Fitted:
    rows = predict(constants)
    errors = (log(r.predicted / r.published) for r in rows if counts(r) and r.published)
    return Fitted(constants=constants, rows=tuple(rows), loss=sum(e**4 for e in errors))


def _moved(constants: Constants, name: str, by: float) -> Constants:
    low, high = BOUNDS[name]
    value = min(max(getattr(constants, name) * exp(by), low), high)
    return replace(constants, **{name: value})


def without(figure: str) -> Callable[[Row], bool]:
    """Counts every row but those of one figure."""
    return lambda row: counted(row) and row.key.figure != figure


def without_row(key: Key) -> Callable[[Row], bool]:
    """Counts every row but one."""
    return lambda row: counted(row) and row.key != key


def left_out() -> Mapping[str, float]:
    """Median error of each figure predicted by constants that were fitted to all others.

    A fit takes minutes: the file is written by `refit`.
    """
    text = files("weft.planner").joinpath("left_out.toml").read_text(encoding="utf-8")
    return {name: row["median"] for name, row in tomllib.loads(text).items()}


def refit(predict: Predict, start: Constants, figures: Sequence[str]) -> Iterator[tuple[str, Fit]]:
    """For each figure the errors of its rows under constants that have not seen them."""
    for figure in figures:
        found = fit_constants(predict, start, counts=without(figure), finest=0.04)
        yield figure, fit([r for r in found.rows if r.key.figure == figure])

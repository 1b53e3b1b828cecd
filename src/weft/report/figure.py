"""How a figure is drawn: a palette, a kit of marks, and two ways out of it.

A figure is drawn once, in the colours for a light page. Its SVG names them instead (`var(--blue)`),
so that the page decides what they are in the light and in the dark; its PNG stands alone and has
its title in it. Colours differ in lightness too, and every series is named where it ends.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

# Okabe and Ito's colour-blind safe palette; its vermilion stands in for orange on white.
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
INK, SOFT, FAINT, PAPER = "#24292f", "#6e7781", "#d8dee4", "#fefefe"
NAMES: Mapping[str, str] = {
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    INK: "ink",
    SOFT: "soft",
    FAINT: "faint",
    PAPER: "paper",
}
DEAD = "#111418"  # an expert that got nothing: darker than anything on the scale
LOAD_COLORS = LinearSegmentedColormap.from_list("load", ["#2166ac", "#f0eee9", "#c8500a"])

WIDTH = 4.6  # inches: a card of the page; still readable when a phone shrinks it by a fifth
HEIGHT = 2.7
PNG_DPI = 200
BINS = 240  # columns of a figure that a person can tell apart at this width
SMOOTHING = 40  # of the width on each side: a trend stays, what comes and goes does not
GAP = 0.085  # of the height: one line of text

STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.left": False,
    "text.color": INK,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.use": True,
}

Points = tuple[Sequence[int], Sequence[float]]


def styled(*, salt: str = "weft") -> AbstractContextManager[None]:
    """The style of all figures; a salt keeps the names inside two SVGs of a page apart."""
    return mpl.rc_context(cast("dict[Any, Any]", {**STYLE, "svg.hashsalt": salt}))


def new_figure(height: float = HEIGHT) -> Figure:
    """An empty figure of the page's width."""
    return Figure(figsize=(WIDTH, height))


def new_axes(figure: Figure, *, unit: str = "", log: bool = False) -> Axes:
    """Axes over steps with room to breathe; the unit stands above the scale it belongs to."""
    axes = figure.add_subplot()
    step_axis(axes)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    if unit:
        axes.set_title(unit, loc="left", fontsize=8, color=SOFT, pad=5)
    return axes


def step_axis(axes: Axes) -> None:
    """Whole numbers of steps along the bottom."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("step", fontsize=8)


def curve(axes: Axes, points: Points, color: str, *, log_steps: bool = False) -> float:
    """A noisy series: its running mean, and faintly what it is the mean of.

    Returns the last mean, where its label goes.
    """
    steps, low, middle, high = binned(*points, log_steps=log_steps)
    smooth = running_mean(middle)
    axes.fill_between(steps, low, high, color=color, alpha=0.16, linewidth=0)
    axes.plot(steps, middle, color=color, alpha=0.35, linewidth=0.8)
    axes.plot(steps, smooth, color=color)
    return float(smooth[-1])


def binned(
    steps: Sequence[int], values: Sequence[float], *, log_steps: bool = False
) -> tuple[NDArray, ...]:
    """Steps, least, mean and greatest value of each column; as they are where there are few."""
    count = len(steps)
    spread = np.geomspace if log_steps else np.linspace
    cuts = np.unique(spread(1, count, min(count, BINS)).round().astype(int))[:-1]
    parts = np.split(np.asarray(values, float), cuts)
    places = np.split(np.asarray(steps, float), cuts)
    columns = [[f(part) for part in parts] for f in (np.min, np.mean, np.max)]
    return np.array([place.mean() for place in places]), *map(np.array, columns)


def running_mean(values: NDArray) -> NDArray:
    """Each value's mean with its neighbours on both sides.

    There are fewer near the start, where a run changes fast, and only those before at the end.
    """
    count = len(values)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(count)
    reach = np.minimum(at, count // SMOOTHING)
    first, last = at - reach, np.minimum(at + reach, count - 1)
    return (sums[last + 1] - sums[first]) / (last + 1 - first)


def name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Writes each series' name (its last value, name, colour) where it ends, none over another."""
    to_axes = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[1]
    placed = sorted((float(to_axes.transform((x, y))[1]), text, color) for y, text, color in ends)
    low = -1.0
    for height, text, color in placed:
        low = max(height, low + GAP * text.count("\n") + GAP)
        axes.annotate(
            text,
            (1.0, low),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=8.5,
            annotation_clip=False,
        )


def to_svg(figure: Figure, name: str) -> str:
    """The figure for a page: no size of its own, text as text, colours by name."""
    buffer = io.StringIO()
    with styled(salt=name):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for color, variable in NAMES.items():
        text = text.replace(color, f"var(--{variable})")
    start, end = text.index("width="), text.index("xmlns=")
    view = text[text.index("viewBox=") : end] if "viewBox=" in text[:end] else ""
    return text[:start] + f'role="img" {view}' + text[end:]


def to_png(figure: Figure, path: Path, title: str) -> None:
    """The figure as a file that stands alone, on white and with its title."""
    with styled():
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        figure.savefig(path, dpi=PNG_DPI, facecolor="white", metadata={"Software": None})

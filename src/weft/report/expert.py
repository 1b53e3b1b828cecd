"""The figures of expert load: a heat map a layer, how far from even, and who got nothing."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from weft.report.figure import (
    BINS,
    BLUE,
    DEAD,
    HEIGHT,
    LOAD_COLORS,
    ORANGE,
    SOFT,
    curve,
    name_ends,
    new_axes,
    new_figure,
    step_axis,
)
from weft.report.run import Run

PANELS = 8  # more layers than these do not fit on a screen: the least balanced are shown
SPAN = 2.0  # the scale ends at a quarter of an even share and at four times it


def has_loads(run: Run) -> bool:
    """Whether the run wrote the load of each layer."""
    return any("expert_load" in record for record in run.steps)


def loads(run: Run) -> tuple[NDArray, NDArray]:
    """Steps [s] and shares [s, layer, expert], averaged over the columns of a figure."""
    records = [record for record in run.steps if "expert_load" in record]
    steps = np.array([record["step"] for record in records])
    shares = np.array([record["expert_load"] for record in records])
    columns = min(len(records), BINS)
    places = [part.mean() for part in np.array_split(steps, columns)]
    return np.array(places), np.stack([p.mean(0) for p in np.array_split(shares, columns)])


def draw_loads(run: Run) -> Figure:
    """Experts upwards, steps to the right, colour for the logarithm of the load."""
    steps, shares = loads(run)
    chosen = _least_balanced(shares)
    figure = new_figure(max(HEIGHT, 0.75 + 0.62 * len(chosen)))
    panels = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
    colors = LOAD_COLORS.with_extremes(bad=DEAD)
    image = None
    for axes, layer in zip(panels, chosen, strict=True):
        heat = np.log2(np.where(shares[:, layer] > 0, shares[:, layer], np.nan)).T
        image = axes.imshow(
            np.ma.masked_invalid(heat),
            aspect="auto",
            interpolation="nearest",
            origin="lower",
            cmap=colors,
            norm=Normalize(-SPAN, SPAN),
            extent=(steps[0] - 0.5, steps[-1] + 0.5, -0.5, shares.shape[2] - 0.5),
        )
        _frame(axes, _layer_name(run, layer))
    step_axis(panels[-1])
    assert image is not None
    bar = figure.colorbar(image, ax=list(panels), aspect=30, pad=0.02)
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["1/4", "1/2", "even", "2x", "4x"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    return figure


def _least_balanced(shares: NDArray) -> list[int]:
    worst_first = np.argsort(-shares.max(2).mean(0))
    return sorted(int(layer) for layer in worst_first[:PANELS])


def _layer_name(run: Run, position: int) -> str:
    routed = run.header.get("routed_layers")
    return f"layer {routed[position] if routed else position}"


def _frame(axes: Axes, name: str) -> None:
    axes.grid(visible=False)
    axes.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_balance(run: Run) -> Figure:
    """The violation of the median layer and of the worst one."""
    figure = new_figure()
    axes = new_axes(figure)
    records = [record for record in run.steps if "expert_load_violation" in record]
    steps = [record["step"] for record in records]
    layers = np.array([record["expert_load_violation"] for record in records])
    worst = curve(axes, (steps, layers.max(1).tolist()), ORANGE)
    middle = curve(axes, (steps, np.median(layers, 1).tolist()), BLUE)
    axes.set_ylim(0)
    name_ends(axes, [(worst, "worst layer", ORANGE), (middle, "median layer", BLUE)])
    return figure


def draw_dead(run: Run) -> Figure:
    """The number of experts without a token, of all that there are."""
    figure = new_figure()
    experts = _experts(run)
    axes = new_axes(figure, unit=f"of {experts:,}" if experts else "")
    steps, dead = run.series("dead_experts")
    curve(axes, (steps, dead), BLUE)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylim(0, max(1, math.ceil(max(dead) * 1.1)))
    if not any(dead):
        axes.text(0.5, 0.5, "none in any step", transform=axes.transAxes, ha="center", color=SOFT)
    return figure


def _experts(run: Run) -> int:
    """Experts over all layers, where the run wrote their loads."""
    last = run.steps[-1].get("expert_load", [])
    return sum(len(layer) for layer in last)

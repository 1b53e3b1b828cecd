"""Pictures of predictions: scaling, errors, memory by part, a step's lanes over the measured ones.

Every file is a PNG of matplotlib's own renderer: no display is needed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from weft.planner.memory import Memory
from weft.planner.row import Row
from weft.telemetry.trace import COMPUTE, SEGMENT, Span

GIB = 2**30
COLORS = ("#3b6ea5", "#d1793b", "#5b9a57", "#9a5b8f", "#8a8a4a", "#777777", "#b04a4a", "#4aa3a3")
# matplotlib's tab20, dark ones first: a timeline has more bodies than a chart has parts
BODIES = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f",
    "#bcbd22", "#17becf", "#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94",
    "#f7b6d2", "#c7c7c7", "#dbdb8d", "#9edae5",
)  # fmt: skip
REST = "#f2f2f2"  # what has no color of its own
DPI = 120


def draw_figures(rows: Sequence[Row], folder: Path) -> Iterator[Path]:
    """Scaling of both systems, and every other figure as predicted over published."""
    folder.mkdir(parents=True, exist_ok=True)
    yield _saved(_scaling(rows), folder / "fig12.png")
    yield _saved(_errors(rows), folder / "published.png")
    for name in dict.fromkeys(row.key.figure for row in rows):
        if name not in ("table3", "fig12"):
            yield _saved(
                _bars(name, [r for r in rows if r.key.figure == name]), folder / f"{name}.png"
            )


def draw_memory(held: Mapping[str, Memory], path: Path, *, room: float) -> Path:
    """Memory by part, a bar a plan, and the line that a rank may fill."""
    figure, axes = _figure(8.0, 1.6 + 0.5 * len(held))
    parts = next(iter(held.values())).parts
    for row, memory in enumerate(held.values()):
        left = 0.0
        for color, (part, size) in zip(COLORS, memory.parts.items(), strict=False):
            name = part if row == 0 else None
            axes.barh(row, size / GIB, left=left, color=color, label=name)
            left += size / GIB
        axes.text(
            left - 0.5, row, f"{left:.1f}", va="center", ha="right", fontsize=8, color="white"
        )
    axes.axvline(room / GIB, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(held)), list(held), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("GiB on the fullest rank; the dashed line is what a rank may fill")
    whole: Any = figure  # its own annotation of a legend is partly unknown
    whole.legend(ncols=len(parts), fontsize=8, loc="outside upper center")
    return _saved(figure, path)


def draw_timelines(traces: Mapping[str, Sequence[Span]], path: Path, *, seconds: float) -> Path:
    """The lanes of one rank, a panel a trace, one over the other on the same scale of time."""
    figure = Figure(figsize=(13.0, 2.6 * len(traces)), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(len(traces), 1, sharex=True, squeeze=False)
    colors = _colors(traces, seconds)
    for (title, spans), axes in zip(traces.items(), panels[:, 0], strict=True):
        _lanes(axes, title, spans, seconds, colors)
    panels[-1, 0].set_xlabel("milliseconds; hatched: compute waits")
    handles = [*(_patch(color, name) for name, color in colors.items()), _patch(REST, "others")]
    whole: Any = figure  # its own annotation of a legend is partly unknown
    whole.legend(handles=handles, ncols=9, fontsize=7, loc="outside upper center")
    return _saved(figure, path)


# ---- panels --------------------------------------------------------------------------------------


def _colors(traces: Mapping[str, Sequence[Span]], seconds: float) -> Mapping[str, str]:
    """A color for each of the bodies that take longest, the longest first."""
    took: dict[str, float] = {}
    for spans in traces.values():
        origin = min((s.start for s in spans), default=0.0)
        for span in spans:
            if span.lane != SEGMENT and not _waits(span) and span.start - origin < seconds:
                took[_body(span)] = took.get(_body(span), 0.0) + span.stop - span.start
    longest = sorted(took, key=lambda body: -took[body])
    return dict(zip(longest, BODIES, strict=False))


def _body(span: Span) -> str:
    """What ran, without the number of its task."""
    return span.name.split(" ")[0].rstrip("0123456789_").removeprefix("again.")


def _waits(span: Span) -> bool:
    return span.name.startswith("wait")


def _lanes(
    axes: Any, title: str, spans: Iterable[Span], seconds: float, colors: Mapping[str, str]
) -> None:
    shown = [s for s in spans if s.lane != SEGMENT]
    origin = min((s.start for s in shown), default=0.0)
    lanes = sorted({s.lane for s in shown}, key=lambda lane: (lane != COMPUTE, lane))
    for span in shown:
        start = span.start - origin
        if start > seconds:
            continue
        waits = _waits(span)
        axes.broken_barh(
            [(start * 1e3, (span.stop - span.start) * 1e3)], (lanes.index(span.lane) - 0.4, 0.8),
            facecolor="none" if waits else colors.get(_body(span), REST),
            hatch="////" if waits else None, edgecolor="#555555", linewidth=0.2,
        )  # fmt: skip
    axes.set_yticks(range(len(lanes)), lanes, fontsize=8)
    axes.set_xlim(0, seconds * 1e3)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9, loc="left")


def _scaling(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 2)
    told = {(r.key.system, r.key.gpus): r for r in rows if r.key.figure == "table3" and r.published
            and r.key.metric == "ktok_s"}  # fmt: skip
    for axes, config in zip(panels, ("strong", "weak"), strict=True):
        for color, system in zip(COLORS, ("megascale", "megatron"), strict=False):
            line = [
                (r.key.gpus, r.predicted)
                for r in rows
                if (r.key.figure, r.key.config, r.key.metric) == ("fig12", config, "ktok_s")
                and r.key.system == system
            ]
            axes.plot(*zip(*line, strict=True), "o-", color=color, label=f"{system}, predicted")
            dots = [(gpus, r.published) for (of, gpus), r in told.items() if of == system]
            if config == "strong" and dots:
                axes.plot(*zip(*dots, strict=True), "x", color="black", markersize=9, mew=2)
        note = " (x: published)" if config == "strong" else ""
        axes.set_title(f"352B on H800, {config} scaling{note}", fontsize=10)
        axes.set_xlabel("GPUs")
        axes.set_ylabel("thousand tokens a second")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _errors(rows: Sequence[Row]) -> Figure:
    figure, axes = _figure(7.0, 6.2)
    known = [r for r in rows if r.published]
    for color, name in zip(COLORS, dict.fromkeys(r.key.figure for r in known), strict=False):
        mine = [(r.published or 0.0, r.predicted) for r in known if r.key.figure == name]
        axes.loglog(*zip(*mine, strict=True), "o", color=color, label=name, alpha=0.7)
    ends = [min(r.published or 1.0 for r in known), max(r.published or 1.0 for r in known)]
    for factor, style in ((1.0, "-"), (1.1, ":"), (1 / 1.1, ":")):
        axes.loglog(ends, [e * factor for e in ends], style, color="black", linewidth=0.8)
    axes.set_xlabel("published (each in its own unit)")
    axes.set_ylabel("predicted; the dotted lines are 10 % off")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    return figure


def _bars(name: str, rows: Sequence[Row]) -> Figure:
    figure, axes = _figure(9.0, 1.4 + 0.2 * len(rows))
    labels = [
        " ".join(
            dict.fromkeys((r.key.system, r.key.model, r.key.machine, r.key.config, r.key.metric))
        )
        for r in rows
    ]
    for at, row in enumerate(rows):
        share = row.predicted / row.published if row.published else 0.0
        axes.barh(at, share, color=COLORS[0])
        told = f"{row.predicted:,.3g} {row.unit}"
        axes.text(0.02, at, told, va="center", fontsize=7, color="white" if share else "black")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("predicted over published; no bar where it is predicted blind")
    axes.set_title(name, fontsize=10)
    return figure


def _figure(wide: float, high: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(wide, high), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _patch(color: str, name: str) -> Any:
    return Patch(facecolor=color, label=name)


def _saved(figure: Figure, path: Path) -> Path:
    canvas: Any = figure  # its own annotation names a type parameter that nobody gives
    canvas.savefig(path, dpi=DPI)
    return path

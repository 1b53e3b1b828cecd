"""The figures of a report, each drawn from what a run has written down; none without its data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from weft.report.expert import draw_balance, draw_dead, draw_loads, has_loads
from weft.report.figure import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    SOFT,
    curve,
    name_ends,
    new_axes,
    new_figure,
    step_axis,
    styled,
)
from weft.report.run import Run

MILLISECONDS, GIB = 1e3, 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One figure: the name of its file, its title, what it shows in words, and how it is drawn."""

    name: str
    title: str
    caption: str
    draw: Callable[[Run], Figure]
    applies: Callable[[Run], bool]


def pictures(run: Run) -> Iterator[tuple[Picture, Figure]]:
    """The figures that this run has data for, drawn."""
    for picture in PICTURES:
        if picture.applies(run):
            with styled():
                figure = picture.draw(run)
                yield picture, figure


def _draw_loss(run: Run, *, log_steps: bool = False) -> Figure:
    figure = new_figure()
    axes = new_axes(figure, unit="nats a token")
    last = curve(axes, run.series("loss"), BLUE, log_steps=log_steps)
    ends = [(last, "training", BLUE)]
    if run.validations:
        steps = [record["step"] for record in run.validations]
        losses = [record["validation_loss"] for record in run.validations]
        axes.plot(steps, losses, color=ORANGE, marker="o", markersize=3)
        ends.append((losses[-1], f"validation {losses[-1]:.3f}", ORANGE))
    baseline = run.summary.get("trigram_loss")
    if baseline is not None:
        axes.axhline(baseline, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        ends.append((baseline, f"trigram {baseline:.3f}", SOFT))
    if log_steps:
        axes.set_xscale("log")
        axes.set_xlim(left=1)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
    _mark_resumptions(run, axes)
    name_ends(axes, ends)
    return figure


def _mark_resumptions(run: Run, axes: Axes) -> None:
    for step in _steps_of(run, "resume"):
        axes.axvline(max(step, 1), color=SOFT, linewidth=0.8, linestyle=":")


def _draw_loss_over_log_steps(run: Run) -> Figure:
    return _draw_loss(run, log_steps=True)


def _draw_rate(run: Run) -> Figure:
    figure = new_figure()
    axes = new_axes(figure)
    steps, rates = run.series("lr")
    axes.plot(steps, rates, color=GREEN)
    axes.set_ylim(0, max(rates) * 1.08)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    axes.yaxis.get_offset_text().set_color(SOFT)
    return figure


def _draw_norm(run: Run) -> Figure:
    figure = new_figure()
    axes = new_axes(figure, log=True)
    curve(axes, run.series("grad_norm"), BLUE)
    clip = run.config.get("optim", {}).get("clip_norm")
    if clip:
        axes.axhline(clip, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        name_ends(axes, [(clip, f"clipped at {clip:g}", SOFT)])
    if run.skipped:
        low = axes.get_ylim()[0]
        axes.plot(run.skipped, [low] * len(run.skipped), "x", color=ORANGE, clip_on=False)
    return figure


def _draw_throughput(run: Run) -> Figure:
    figure = new_figure()
    axes = new_axes(figure)
    steps, rates = run.series("tokens_per_s")
    curve(axes, (steps, rates), BLUE)
    axes.set_ylim(0, max(rates) * 1.05)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def _draw_exposed(run: Run) -> Figure:
    """Time in which compute stood waiting, beside the time of the whole step."""
    figure = new_figure()
    axes = new_axes(figure, unit="milliseconds a step")
    whole = curve(axes, run.series("step_ms"), SOFT)
    waiting = curve(axes, run.series("exposed_comm_ms"), ORANGE)
    axes.set_ylim(0)
    share = sum(run.series("exposed_comm_ms")[1]) / sum(run.series("step_ms")[1])
    ends = [(whole, "whole step", SOFT), (waiting, f"waiting\n{share:.1%} of all", ORANGE)]
    name_ends(axes, ends)
    return figure


def _draw_memory(run: Run) -> Figure:
    figure = new_figure()
    axes = new_axes(figure, unit="GiB on the first rank")
    steps, peaks = run.series("peak_bytes")
    held = [peak / GIB for peak in peaks]
    axes.plot(steps, held, color=BLUE)
    axes.set_ylim(0, max(held) * 1.15)
    name_ends(axes, [(held[-1], f"{held[-1]:.2f} GiB", BLUE)])
    return figure


def _draw_events(run: Run) -> Figure:
    """A row for each kind of event, a mark for each one."""
    rows = [
        ("checkpoint", _steps_of(run, "checkpoint"), "|", BLUE),
        ("evaluation", [record["step"] for record in run.validations], "|", GREEN),
        ("resumed", _steps_of(run, "resume"), "o", INK),
        ("not saved", _steps_of(run, "no_checkpoint"), "X", ORANGE),
        ("skipped", run.skipped, "x", ORANGE),
        ("run again", _steps_of(run, "overflow"), "x", INK),
    ]
    rows = [row for row in rows if row[1]]
    figure = new_figure(1.1 + 0.25 * len(rows))
    axes = figure.add_subplot()
    for height, (_, steps, marker, color) in enumerate(reversed(rows)):
        axes.plot(steps, [height] * len(steps), marker, color=color, markersize=9, clip_on=False)
    axes.set_yticks(range(len(rows)), [f"{name} {len(s)}" for name, s, *_ in reversed(rows)])
    axes.set_ylim(-0.7, len(rows) - 0.4)
    axes.set_xlim(0, max(run.last_step, 1, *(step for _, steps, *_ in rows for step in steps)))
    step_axis(axes)
    return figure


def _steps_of(run: Run, kind: str) -> list[int]:
    return [event["step"] for event in run.events if event["event"] == kind]


def _has(*fields: str) -> Callable[[Run], bool]:
    """Whether a run has numbers in all of these fields."""
    return lambda run: all(run.series(field)[0] for field in fields)


def _waits(run: Run) -> bool:
    """Whether the run has a wire to wait for."""
    return any(run.series("exposed_comm_ms")[1])


def _has_events(run: Run) -> bool:
    kinds = ("checkpoint", "resume", "no_checkpoint")
    return bool(run.validations or run.skipped or any(_steps_of(run, kind) for kind in kinds))


_LOSS = "Mean over the valid targets of each global batch; dotted: a resumption."
_TABLE: Sequence[tuple[str, str, str, Callable[[Run], Figure], Callable[[Run], bool]]] = (
    ("loss", "Loss", _LOSS, _draw_loss, _has("loss")),
    (
        "loss-log",
        "Loss, steps on a log scale",
        "The same curves; the first steps get as much room as the last.",
        _draw_loss_over_log_steps,
        _has("loss"),
    ),
    (
        "expert-load",
        "Expert load by layer",
        "Tokens that chose each expert over an even share. Blue: fewer; orange: more; black: none.",
        draw_loads,
        has_loads,
    ),
    (
        "balance",
        "Load imbalance",
        "The busiest expert's load over an even one, less 1 (MaxVio); 0 is balanced.",
        draw_balance,
        has_loads,
    ),
    ("dead", "Dead experts", "Experts that no token chose in a step.", draw_dead, _has("loss")),
    ("grad-norm", "Gradient norm", "Global, before clipping.", _draw_norm, _has("grad_norm")),
    ("lr", "Learning rate", "As the recipe schedules it.", _draw_rate, _has("lr")),
    (
        "throughput",
        "Tokens a second",
        "All ranks together; evaluation and checkpoints not counted.",
        _draw_throughput,
        _has("tokens_per_s"),
    ),
    (
        "exposed",
        "Exposed communication",
        "How long the first rank stood waiting for a collective, beside its whole step.",
        _draw_exposed,
        _waits,
    ),
    ("memory", "Peak memory", "The most held so far.", _draw_memory, _has("peak_bytes")),
    ("events", "Events", "What happened at which step.", _draw_events, _has_events),
)
PICTURES = tuple(
    Picture(name=name, title=title, caption=caption, draw=draw, applies=applies)
    for name, title, caption, draw, applies in _TABLE
)

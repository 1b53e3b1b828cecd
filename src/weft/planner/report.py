"""Plans, simulations and ratios as text: what a command prints."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from weft.model.families import Shape
from weft.planner.machine import Machine
from weft.planner.memory import Memory
from weft.planner.row import Row, fit
from weft.planner.search import GIB, Best, Found, losers
from weft.planner.simulate import Simulated
from weft.planner.whole import Whole

SHOWN = 4  # causes of exposed communication


def plan_text(found: Found) -> str:
    """The best few plans, and for each knob why its other values lost."""
    return "\n".join(_plan_lines(found))


def _plan_lines(found: Found) -> Iterator[str]:
    wanted = found.wanted
    tried, fitting = len(found.estimates), sum(not e.refused for e in found.estimates)
    machine = wanted.cluster.machine
    yield (
        f"{wanted.name} on {wanted.cluster.ranks:,} x {machine.name}, {wanted.batch} sequences of "
        f"{wanted.sequence}: {tried:,} candidates, {fitting:,} fit into "
        f"{wanted.room / GIB:,.0f} GiB at imbalance {wanted.imbalance}"
    )
    for place, best in enumerate(found.best, start=1):
        yield ""
        yield f"{place}. {best.choice.text()}"
        yield from (f"   {line}" for line in _best_lines(best, machine))
    if found.best:
        yield ""
        yield "why the others lost (a step beside the best; the nearest candidate where none fits)"
        yield from (f"   {knob:<22} {why}" for knob, why in losers(found))


def _best_lines(best: Best, machine: Machine) -> Iterator[str]:
    yield from step_lines(best.simulated, machine)
    yield memory_line(best.memory)


def step_lines(done: Simulated | Whole, machine: Machine) -> Iterator[str]:
    """Time of a step, and where it goes."""
    mfu = done.flops / machine.device.peak_flops
    yield (
        f"step     {done.seconds:.3f} s, {done.tokens_per_s / 1e3:,.1f} k tokens/s, MFU {mfu:.1%}"
    )
    parts = {
        "products and attention": done.products,
        "other operators": done.others,
        "exposed communication": sum(done.exposed.values()),
        "bubble": done.bubble,
    }
    yield "of it    " + ", ".join(f"{name} {t / done.seconds:.1%}" for name, t in parts.items())
    largest = sorted(done.exposed.items(), key=lambda item: -item[1])[:SHOWN]
    shown = [f"{cause} {t * 1e3:,.0f} ms" for cause, t in largest if t > 0]
    yield "exposed  " + (", ".join(shown) or "nothing")


def memory_line(held: Memory) -> str:
    """Memory of the fullest rank by part."""
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in held.parts.items())
    return f"memory   {held.all / GIB:.1f} GiB: {parts}"


def ratio(ffn_hidden: int, bandwidth: float, peak: float, ranks: int | None = None) -> float:
    """Compute over communication of experts: above 1 a wire of that bandwidth can be hidden.

    Example:
        >>> round(ratio(14336, 200e9, 989e12), 2)
        4.35

    Paper: 1.6.
    """
    edge = ranks / (ranks - 1) if ranks else 1.0
    return 1.5 * ffn_hidden * bandwidth / peak * edge


def ratio_text(shape: Shape, machines: Iterable[Machine]) -> str:
    """The scale-up ratio of a model on links and network cards of machines."""
    lines = [
        "R = compute / communication of experts = 3/2 h_ffn bandwidth / peak (paper 1.6);",
        f"h_ffn = {shape.ffn_hidden}. Above 1 the wire can be hidden, both sides at their peak.",
        "",
        f"{'machine':<8} {'R on links':>11} {'R on cards':>11} {'h_ffn for 1 on links':>22}",
    ]
    for machine in machines:
        peak = machine.device.peak_flops
        link, card = machine.link.bandwidth, machine.nic.bandwidth
        lines.append(
            f"{machine.name:<8} {ratio(shape.ffn_hidden, link, peak):>11.2f} "
            f"{ratio(shape.ffn_hidden, card, peak):>11.2f} {peak / link / 1.5:>22,.0f}"
        )
    return "\n".join(lines)


def rows_text(rows: Sequence[Row]) -> str:
    """Every row by figure, the published value and the error beside it where there is one."""
    figures: dict[str, list[Row]] = {}
    for row in rows:
        figures.setdefault(row.key.figure, []).append(row)
    return "\n\n".join(_figure_text(name, found) for name, found in figures.items())


def _figure_text(name: str, rows: Sequence[Row]) -> str:
    lines = [
        name,
        (
            f"  {'system':<10} {'model':<14} {'machine':<7} {'GPUs':>5}  {'configuration':<24} "
            f"{'metric':<17} {'predicted':>10} {'published':>10} {'error':>7}"
        ),
    ]
    for row in rows:
        key = row.key
        told = "" if row.published is None else f"{row.published:,.3f}"
        error = "" if row.error is None else f"{row.error:+.1%}"
        lines.append(
            f"  {key.system:<10} {key.model:<14} {key.machine:<7} {key.gpus:>5}  {key.config:<24} "
            f"{key.metric:<17} {row.predicted:>10,.3f} {told:>10} {error:>7}"
        )
    return "\n".join(lines)


def fit_text(rows: Sequence[Row], left_out: Mapping[str, float]) -> str:
    """How well the published rows are met, and how well by constants that have not seen them."""
    whole = fit(rows)
    line = (
        f"{whole.rows} published rows: median error {whole.median:.1%}, largest {whole.largest:.1%}"
    )
    seen = ", ".join(f"{name} {error:.1%}" for name, error in left_out.items())
    return line + (f"\nmedian error of a figure left out of the fit: {seen}" if seen else "")

"""From timed tasks to the measured part of a machine: rates, and what a body takes however small.

    product      FLOP/s of each shape
    attention    FLOP/s of each length and phase, by the bodies that a recipe may ask for
    pass         seconds = least + bytes / bandwidth, by weighted least squares over its sizes
    issue        host seconds of each body, whatever the device does
    message      as it was measured

A sample is a task as the cost model sees it (`planner.work`) with the time it took: what is priced
is what was timed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

from weft.planner.machine import (
    REPEATABLE,
    Attention,
    Beside,
    Device,
    Issue,
    Machine,
    Measured,
    Message,
    Network,
    Pass,
    Product,
)
from weft.planner.work import Attend, Passing, Products, Work, filled


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One task of a run: its body, what it asks of a machine, and the seconds it took there; with
    the attention of its recipe.
    """

    body: str
    asked: Work
    seconds: float
    kernel: str = REPEATABLE


def measured(
    samples: Sequence[Sample],
    *,
    device: Device,
    issue: Mapping[str, float],
    messages: Sequence[Message],
    beside: Beside | None,
) -> Measured:
    """The measured part of a machine from samples of its bodies."""
    return Measured(
        products=tuple(_products(samples, device)),
        attention=tuple(_attention(samples, device)),
        passes={one.body: one for one in _passes(samples, device)},
        messages=tuple(messages),
        issue=dict(issue),
        beside=beside,
    )


def _products(samples: Iterable[Sample], device: Device) -> Iterable[Product]:
    shapes: dict[tuple[int, int, int, int, str], list[float]] = {}
    for one in samples:
        if isinstance(asked := one.asked, Products):
            key = (asked.rows, asked.n, asked.k, asked.groups, asked.phase)
            rate = asked.flops / max(one.seconds - device.launch, device.launch)
            shapes.setdefault(key, []).append(rate)
    for (rows, n, k, groups, phase), rates in sorted(shapes.items()):
        yield Product(rows=rows, n=n, k=k, groups=groups, phase=phase, flops=median(rates))


def _attention(samples: Iterable[Sample], device: Device) -> Iterable[Attention]:
    lengths: dict[tuple[str, int, str], list[float]] = {}
    for one in samples:
        if isinstance(asked := one.asked, Attend):
            rate = asked.flops / max(one.seconds - device.launch, device.launch)
            rate /= filled(asked, device.multiprocessors, one.kernel)
            lengths.setdefault((one.kernel, asked.length, asked.phase), []).append(rate)
    for (kernel, length, phase), rates in sorted(lengths.items()):
        yield Attention(length=length, phase=phase, flops=median(rates), kernel=kernel)


def _passes(samples: Iterable[Sample], device: Device) -> Iterable[Pass]:
    bodies: dict[str, dict[int, list[float]]] = {}
    for one in samples:
        if isinstance(asked := one.asked, Passing):
            bodies.setdefault(asked.body, {}).setdefault(asked.moved, []).append(one.seconds)
    for body, sizes in sorted(bodies.items()):
        yield _line(body, [(size, median(times)) for size, times in sizes.items()], device)


def _line(body: str, points: Sequence[tuple[int, float]], device: Device) -> Pass:
    """The line through sizes and times, each error as a share of its time; neither part below 0.

    Where the bytes explain nothing, what is left is what the body takes however small.
    """
    weights = [1 / max(time, 1e-9) ** 2 for _, time in points]
    total = sum(weights)
    mean_size = sum(w * size for w, (size, _) in zip(weights, points, strict=True)) / total
    mean_time = sum(w * time for w, (_, time) in zip(weights, points, strict=True)) / total
    spread = sum(w * (size - mean_size) ** 2 for w, (size, _) in zip(weights, points, strict=True))
    joint = sum(
        w * (size - mean_size) * (time - mean_time)
        for w, (size, time) in zip(weights, points, strict=True)
    )
    slope = joint / spread if spread > 0 else 0.0
    least = mean_time - slope * mean_size
    copy = device.memory_bandwidth * device.copy
    if slope <= 0:
        slope = 0.0 if spread > 0 else 1 / copy
        least = max(mean_time - slope * mean_size, 0.0)
    if least < 0:
        least = 0.0
        slope = sum(w * s * t for w, (s, t) in zip(weights, points, strict=True)) / sum(
            w * s * s for w, (s, _) in zip(weights, points, strict=True)
        )
    return Pass(body=body, bandwidth=1 / slope if slope else copy * UNBOUND, seconds=least)


UNBOUND = 1e3  # times a copy's bandwidth: bytes that cost nothing


# ---- the file ------------------------------------------------------------------------------------


def machine_text(machine: Machine, *, source: Mapping[str, str], run: str) -> str:
    """A machine as its file: numbers with their sources, measured rows with the run they are of."""
    lines = [f'name = "{machine.name}"']
    for key, table in (("device", machine.device), ("link", machine.link), ("nic", machine.nic)):
        lines += ["", f"[{key}]", *(f"{k} = {_number(v)}" for k, v in _fields(table).items())]
    lines += ["", "[source]", *(f'"{key}" = "{text}"' for key, text in source.items())]
    lines += ["", "[measured]", f'run = "{run}"']
    found = machine.measured
    if found.beside is not None:
        lines.append(f"beside = {_inline(asdict(found.beside))}")
    rows: Mapping[str, Sequence[Any]] = {
        "product": found.products,
        "attention": found.attention,
        "pass": tuple(found.passes.values()),
        "issue": [Issue(body=body, seconds=cost) for body, cost in sorted(found.issue.items())],
        "message": found.messages,
    }
    for name, many in rows.items():
        if many:
            lines += [f"{name} = [", *(f"    {_inline(asdict(one))}," for one in many), "]"]
    return "\n".join(lines) + "\n"


def _fields(table: Device | Network) -> Mapping[str, float]:
    return {field.name: getattr(table, field.name) for field in fields(table)}


def _inline(row: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in row.items()) + " }"


def _value(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"

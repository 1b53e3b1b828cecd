"""Where a step's time goes: one row a task body, with the work the score says it does.

The FLOPs are those of `compose.price` (routed rows at balance); the bytes are those of the tensors
that the body was given and gave back, and of a collective on CUDA those on the wire. A rate is what
was reached: FLOP/s where a body is bound by its products, bytes a second elsewhere. The floor is
what the same work takes at the device's ceilings (`bench.floor`); the rows farthest from theirs
come first, so the table is the list of what to do next.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from weft.bench.ceilings import Ceilings
from weft.bench.floor import floors
from weft.bench.rig import Rig
from weft.bench.tap import Call, Scales, Tap
from weft.compose.plan import sizes
from weft.compose.price import BYTES, flops, wire_bytes
from weft.compose.step import Step
from weft.graph.fused import OPERATORS
from weft.graph.opset import Lane, Tolerance
from weft.graph.program import Program, Task
from weft.runtime.state import precision
from weft.schedule.action import is_collective

ZERO, REST, STEP = "zero gradients", "between bodies", "whole step"

_PRODUCTS = (Tolerance.MATMUL, Tolerance.ATTENTION)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One body over a step: how often it ran, for how long, and what it did."""

    name: str
    lane: str
    calls: int
    ms: float
    flops: int
    moved_bytes: int
    floor_ms: float = 0.0

    @property
    def gap_ms(self) -> float:
        """What a perfect body would save."""
        return self.ms - self.floor_ms

    def rate(self) -> str:
        """What was reached, or nothing where nobody counts."""
        if self.ms <= 0:
            return ""
        if self.flops and is_product(self.name):
            return f"{self.flops / self.ms / 1e6:,.1f} GFLOP/s"
        return f"{self.moved_bytes / self.ms / 1e6:,.1f} GB/s" if self.moved_bytes else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """The rows of a tapped step, the farthest from its floor first, and its own time, which the
    taps lengthen.
    """

    rows: tuple[Row, ...]
    tapped_ms: float

    @property
    def exposed_ms(self) -> float:
        """How long compute stood still for a collective."""
        return sum(row.ms for row in self.rows if row.lane == "wait")

    @property
    def floor_ms(self) -> float:
        """The least that all bodies together can take."""
        return sum(row.floor_ms for row in self.rows)

    @property
    def compute_ms(self) -> float:
        """The time of all bodies on the compute lane."""
        return sum(row.ms for row in self.rows if row.lane == Lane.COMPUTE or row.name == ZERO)


def profile(rig: Rig, *, steps: int, ceilings: Ceilings) -> Profile:
    """Times every body of `steps` steps; each row is the median over the steps."""
    scales, tap = Scales(), Tap(rig.place.device)
    rig.bound(scales.bodies, lambda lanes: lanes).run(rig.environment())
    bound = rig.bound(tap.bodies, tap.lanes)
    recorded = []
    for _ in range(steps + 1):  # the first one warms up
        rig.transport.barrier()
        hold(rig.place.device)
        tap.time(STEP, lambda: bound.run(tap.time(ZERO, rig.environment)))
        recorded.append(_by_name(tap.empty()))
    step, cuda = rig.stage.step, rig.place.device.type == "cuda"
    moved = {**scales.moved, **wire(step, on_device=cuda)}
    least = floors(step, sizes(step.plan), widths(step.plan.precision), ceilings)
    return summarise(recorded[1:], work(step), moved, least, beside=cuda)


HELD_CYCLES = 200_000_000  # a tenth of a second at 2 GHz, longer than a tapped step takes to issue


def hold(device: torch.device) -> None:
    """Keeps a CUDA device busy, so that a short body is timed by itself and not by its launch."""
    if device.type == "cuda":
        torch.cuda._sleep(HELD_CYCLES)


def work(step: Step) -> Mapping[str, int]:
    """The FLOPs of each body in one step, routed rows at balance."""
    n = sizes(step.plan)
    done: dict[str, int] = {}
    for task, _ in tasks(step):
        done[task.body] = done.get(task.body, 0) + flops(task, n)
    return done


def wire(step: Step, *, on_device: bool) -> Mapping[str, int]:
    """The bytes each collective brings to this rank in one step, routed rows at balance.

    None on a host, where the time of a posted body is not that of its transfer.
    """
    n, bytes_of = sizes(step.plan), widths(step.plan.precision)
    brought: dict[str, int] = {}
    for task, program in tasks(step):
        if is_collective(task):
            size = round(wire_bytes(task, program, n, bytes_of)) if on_device else 0
            brought[task.body] = brought.get(task.body, 0) + size
    return brought


def widths(name: str) -> Mapping[str, int]:
    """Bytes of an element of each kind of value, in a precision."""
    dtypes = precision(name)
    return {**BYTES, "act": dtypes.act.itemsize, "acc": dtypes.acc.itemsize}


def tasks(step: Step) -> Iterator[tuple[Task, Program]]:
    """Every task a step runs, with its program."""
    for instance in step.instances:
        program = step.templates[instance.template].program
        for task in program.tasks:
            yield task, program


@dataclass(frozen=True, kw_only=True, slots=True)
class Sum:
    """The calls of one name in one step."""

    calls: int
    ms: float


def _by_name(calls: Iterable[Call]) -> dict[str, Sum]:
    sums: dict[str, Sum] = {}
    for call in calls:
        before = sums.get(call.name, Sum(calls=0, ms=0.0))
        ms = before.ms + call.watch.milliseconds()
        sums[call.name] = Sum(calls=before.calls + 1, ms=ms)
    return sums


def summarise(
    steps: Sequence[Mapping[str, Sum]],
    done: Mapping[str, int],
    moved: Mapping[str, int],
    least: Mapping[str, float],
    *,
    beside: bool,
) -> Profile:
    """Rows from the sums of each step; what no body accounts for is a row of its own.

    Collectives run `beside` compute on a device; on a host their time is that of posting them.
    """
    rows = [
        Row(
            name=name,
            lane=lane(name),
            calls=one.calls,
            ms=statistics.median(step[name].ms for step in steps),
            flops=done.get(name, 0),
            moved_bytes=moved.get(name, 0),
            floor_ms=least.get(name, 0.0),
        )
        for name, one in steps[-1].items()
        if name != STEP
    ]
    rest = statistics.median(step[STEP].ms - _serial_ms(step, beside=beside) for step in steps)
    rows.append(Row(name=REST, lane="", calls=0, ms=rest, flops=0, moved_bytes=0))
    return Profile(
        rows=tuple(sorted(rows, key=lambda row: -row.gap_ms)),
        tapped_ms=statistics.median(step[STEP].ms for step in steps),
    )


def _serial_ms(step: Mapping[str, Sum], *, beside: bool) -> float:
    """What runs one after another."""
    apart = {STEP} | {name for name in step if beside and lane(name) == Lane.COMM}
    return sum(one.ms for name, one in step.items() if name not in apart)


def lane(name: str) -> str:
    """The lane of a row: that of its operator, `wait` for a wait, none for what is no body."""
    if name.startswith("wait."):
        return "wait"
    op = OPERATORS.get(name.partition(".")[0])
    return "" if op is None else str(op.lane)


def is_product(name: str) -> bool:
    """Whether a body is bound by its matrix products."""
    op = OPERATORS.get(name.partition(".")[0])
    return op is not None and op.tolerance in _PRODUCTS


def render(found: Profile) -> str:
    """The rows as a table."""
    head = (
        f"  {'body':<24} {'lane':<8} {'calls':>5} {'ms':>9} {'share':>6} {'floor':>9} {'ratio':>6} "
    )
    lines = [f"{head}{'GFLOP':>9}  reached"]
    for row in found.rows:
        share = row.ms / found.tapped_ms
        floor = f"{row.floor_ms:.3f}" if row.floor_ms else ""
        ratio = f"{row.ms / row.floor_ms:.2f}" if row.floor_ms else ""
        work_done = f"{row.flops / 1e9:,.2f}" if row.flops else ""
        lines.append(
            f"  {row.name:<24} {row.lane:<8} {row.calls or '':>5} {row.ms:>9.3f} {share:>6.1%} "
            f"{floor:>9} {ratio:>6} {work_done:>9}  {row.rate()}"
        )
    lines.append(f"  {STEP + ', tapped':<39} {found.tapped_ms:>9.3f}")
    return "\n".join(lines)

"""A schedule played at the prices of a machine: when each task runs, what waits for what.

    compute   one task after another; beside a collective it runs slower, because the collective's
              kernels hold a share of the multiprocessors (copy engines hold none)
    lanes     the collectives of a group in order, each as early as its post
    fusion    a product and the collective that feeds it or that it feeds as one launch: the wire
              hides under the product but for its first part, and row movement rides along

The order is the one that the executor runs; nothing is moved here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from weft.graph.program import Program, Task
from weft.planner.work import ROWS
from weft.schedule.action import Ordered, Post, Run, Wait, is_collective

Seconds = Callable[[Task], float]
COMPUTE = "compute"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One task on its lane."""

    lane: str
    task: Task
    start: float
    stop: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """The compute lane waiting for one collective."""

    cause: str
    start: float
    stop: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """One segment from its first task to its last."""

    bars: tuple[Bar, ...]
    gaps: tuple[Gap, ...]
    seconds: float

    @property
    def exposed(self) -> Mapping[str, float]:
        """Seconds of waiting, by the payload that was waited for."""
        causes: dict[str, float] = {}
        for gap in self.gaps:
            causes[gap.cause] = causes.get(gap.cause, 0.0) + gap.stop - gap.start
        return causes


@dataclass(frozen=True, kw_only=True, slots=True)
class Fused:
    """One launch: its product, its collective, and the row movement between them."""

    product: Task
    message: Task
    passes: tuple[Task, ...]

    @property
    def part(self) -> float:
        """How much of the product the launch holds: FC1 of FC1 and FC3, else all of it."""
        return 0.5 if self.product.op.name == "expert_up" else 1.0


def play(ordered: Ordered, seconds: Seconds, *, share: float = 0.0) -> Played:
    """Every task at its time; `share` is what a collective in flight takes of compute beside it."""
    bars: list[Bar] = []
    gaps: list[Gap] = []
    arrives: dict[str, float] = {}  # a collective's end, by name
    flying: list[tuple[float, float]] = []  # on any lane, from start to end
    lanes: dict[str, float] = {}
    now = 0.0
    for action in ordered.actions:
        match action:
            case Run(task):
                stop = _slowed(now, seconds(task), flying, share)
                bars.append(Bar(lane=COMPUTE, task=task, start=now, stop=stop))
                now = stop
            case Post(task):
                lane = f"{task.lane} {task.group}"
                start = max(now, lanes.get(lane, 0.0))
                stop = lanes[lane] = arrives[task.name] = start + seconds(task)
                bars.append(Bar(lane=lane, task=task, start=start, stop=stop))
                flying.append((start, stop))
            case Wait(task):
                stop = arrives.get(task.name, now)
                if stop > now:
                    gaps.append(Gap(cause=label(task), start=now, stop=stop))
                    now = stop
            case _:
                pass
    return Played(bars=tuple(bars), gaps=tuple(gaps), seconds=now)


def label(task: Task) -> str:
    """What a collective carries, and over which group."""
    return f"{task.group} {task.attributes['label']}"


def _slowed(start: float, work: float, flying: list[tuple[float, float]], share: float) -> float:
    """When work that starts at a time is done, at the lower rate while anything is in flight."""
    now, left = start, work
    for begin, end in flying if share else ():
        if end <= now or begin >= now + left:
            continue
        left -= max(begin - now, 0.0)
        now = max(now, begin)
        inside = min(end - now, left / (1 - share))
        now, left = now + inside, left - inside * (1 - share)
    return now + left


# ---- fusion --------------------------------------------------------------------------------------


def fused(program: Program) -> Iterator[Fused]:
    """The pairs of a program that one launch can do, at most one for each product.

    A collective is joined to the product that reads it, or else to the product that it reads, over
    tasks that move rows. What stands between without moving rows keeps its own price.
    """
    makers, readers = program.producer(), program.consumers()
    taken: set[str] = set()
    for task in program.tasks:
        if not is_collective(task):
            continue
        ahead = _chain(task, lambda t: readers.get(t.outputs[0], []))
        behind = _chain(task, lambda t: [makers[t.inputs[0]]] if t.inputs[0] in makers else [])
        for chain in (ahead, behind):
            if chain and chain[-1].name not in taken:
                taken.add(chain[-1].name)
                yield Fused(
                    product=chain[-1],
                    message=task,
                    passes=tuple(t for t in chain[:-1] if t.op.name in _RIDES),
                )
                break


def _chain(task: Task, follow: Callable[[Task], list[Task]]) -> list[Task]:
    """The tasks from a collective to the nearest product over row movement, if there is one."""
    chain: list[Task] = []
    at = task
    while True:
        near = [t for t in follow(at) if not t.is_wgrad and not is_collective(t)]
        product = next((t for t in near if t.op.weights), None)
        if product is not None:
            return [*chain, product]
        movers = [t for t in near if t.op.name in ROWS or t.op.name in _BETWEEN]
        if len(movers) != 1:
            return []
        chain.append(at := movers[0])


_RIDES = ROWS | {"pack_heads"}
_BETWEEN = frozenset({"rotate", "norm_rotate", "pack_heads"})  # after a projection

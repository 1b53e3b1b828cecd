"""The text of a schedule: its actions, numbered, which parse back; its lanes, drawn to scale.

    7  post  all_to_all   sp: qkv  p -> y_2         compute  a=b=====c=e====f=g====....h===
    8  wait  all_to_all   sp: qkv                   comm sp         1=        2==
    9  free  p                                      comm ep                       3====
   10  run   split_heads  y_2 -> q_2, k_2, v_2      exposed                        ^^^^

The timeline takes prices from its caller: a compute lane that does one thing at a time, and a lane
for each group, whose collectives follow one another. What lanes cost each other (memory bandwidth,
links) is not in it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from string import ascii_letters, digits

from weft.errors import ProgramError
from weft.graph.program import Program, Task
from weft.schedule.action import (
    Action,
    Free,
    Join,
    Ordered,
    Post,
    Run,
    Wait,
    is_collective,
    is_open,
)

WIDTH = 100
_VERBS: dict[str, type[Run] | type[Post] | type[Wait]] = {"run": Run, "post": Post, "wait": Wait}
_COMPUTE = "compute"
_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))

Price = Callable[[Task], float]


# ---- actions ----


def render_actions(ordered: Ordered) -> str:
    """Every action, by the number that `schedule.check` gives it; frees in a row share a line."""
    lines = [f"{ordered.program.name}: {len(ordered.actions)} actions", ""]
    tasks = [a.task for a in ordered.actions if not isinstance(a, Free | Join)]
    width = max(
        (len(name) for name in (*(t.name for t in tasks), *ordered.program.joins)), default=0
    )
    numbered = enumerate(ordered.actions)
    for is_free, run in groupby(numbered, key=lambda pair: isinstance(pair[1], Free)):
        actions = list(run)
        if is_free:
            lines += _free_lines(actions)
        else:
            lines += [_action_line(n, action, width, ordered.program) for n, action in actions]
    return "\n".join(lines)


def parse(text: str, program: Program) -> Ordered:
    """The order that a text of actions stands for; numbers are not read, so lines can be moved.

    Raises:
        ProgramError: a line that is no action, or a task that the program does not have.
    """
    tasks = {task.name: task for task in program.tasks}
    title, *lines = text.strip().splitlines()
    if not title.startswith(f"{program.name}: "):
        raise ProgramError(f"found the title {title!r}, expected the actions of {program.name}")
    actions = (action for line in lines if line.strip() for action in _parse_line(line, tasks))
    return Ordered(program=program, actions=tuple(actions))


def _action_line(number: int, action: Action, width: int, program: Program) -> str:
    match action:
        case Run(task):
            verb, name, detail = "run", task.name, _flow(task)
        case Post(task):
            left = "  (left open)" if is_open(program, task) else ""
            verb, name, detail = "post", task.name, f"{_where(task)}  {_flow(task)}{left}"
        case Wait(task):
            verb, name, detail = "wait", task.name, _where(task)
        case Join(value):
            verb, name, detail = "join", value, "from an earlier segment"
        case Free():
            raise AssertionError(f"{action=} has a line of its own")
    return f"{number:>4}  {verb:<4}  {name:<{width}}  {detail}"


def _free_lines(numbered: Sequence[tuple[int, Action]]) -> Iterator[str]:
    """Values let go of one after the other, on as many lines as they need."""
    line = ""
    for number, action in numbered:
        assert isinstance(action, Free), f"{action=}"
        if not line:
            line = f"{number:>4}  free  {action.value}"
        elif len(line) + len(action.value) + 2 <= WIDTH:
            line += f", {action.value}"
        else:
            yield line
            line = f"{number:>4}  free  {action.value}"
    yield line


def _where(task: Task) -> str:
    return f"{task.channel}: {task.attributes['label']}"


def _flow(task: Task) -> str:
    return f"{', '.join(task.inputs)} -> {', '.join(task.outputs)}"


def _parse_line(line: str, tasks: dict[str, Task]) -> Iterator[Action]:
    match line.replace(",", " ").split():
        case [_, "free", *values] if values:
            yield from (Free(value) for value in values)
        case [_, "join", value, *_]:
            yield Join(value)
        case [_, ("run" | "post" | "wait") as verb, name, *_] if name in tasks:
            yield _VERBS[verb](tasks[name])
        case [_, "run" | "post" | "wait", name, *_]:
            raise ProgramError(
                f"found task {name!r} in {line.strip()!r}, expected one of the program's"
            )
        case _:
            raise ProgramError(
                f"found {line.strip()!r}, expected a number, run, post, wait, join or free, "
                "and a name"
            )


# ---- timeline ----


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One task on its lane, from start to stop in seconds."""

    lane: str
    task: Task
    start: float
    stop: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What is on its way at the edge of a segment: when each value in flight arrives, by its name,
    and until when each lane is busy; seconds from that edge.
    """

    values: Mapping[str, float] = field(default_factory=dict[str, float])
    lanes: Mapping[str, float] = field(default_factory=dict[str, float])


IDLE = Traffic()


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """What ran when, when the compute lane stood waiting, how long it all took, and what is still
    on its way at the end.
    """

    bars: tuple[Bar, ...]
    exposed: tuple[tuple[float, float], ...]
    seconds: float
    leaving: Traffic = IDLE


def place(ordered: Ordered, price: Price, entering: Traffic = IDLE) -> Timeline:
    """Every task at its time: compute in order, the collectives of a channel in order."""
    bars: list[Bar] = []
    exposed: list[tuple[float, float]] = []
    arrives: dict[str, float] = dict(entering.values)  # when a value in flight is there
    busy: dict[str, float] = dict(entering.lanes)
    now = 0.0
    for action in ordered.actions:
        match action:
            case Run(task):
                bars.append(Bar(lane=_COMPUTE, task=task, start=now, stop=now + price(task)))
                now = bars[-1].stop
            case Post(task):
                lane = f"{task.lane} {task.channel}"
                start = max(now, busy.get(lane, 0.0))
                bars.append(Bar(lane=lane, task=task, start=start, stop=start + price(task)))
                busy[lane] = bars[-1].stop
                arrives.update(dict.fromkeys(task.outputs, bars[-1].stop))
            case Wait() | Join():
                value = action.value if isinstance(action, Join) else action.task.outputs[0]
                there = arrives.get(value, 0.0)
                if there > now:
                    exposed.append((now, there))
                now = max(now, there)
            case Free():
                pass
    leaving = Traffic(
        values={v: arrives[v] - now for v in ordered.program.opens},
        lanes={lane: stop - now for lane, stop in busy.items() if stop > now},
    )
    return Timeline(bars=tuple(bars), exposed=tuple(exposed), seconds=now, leaving=leaving)


def render_timeline(ordered: Ordered, price: Price, *, width: int = WIDTH) -> str:
    """The lanes of a schedule over time, a key for each bar, and what communication is exposed.

    `price` gives the seconds of a task. A bar is its key and then `=`, a wait is dots; what covers
    no column is listed below.
    """
    line = place(ordered, price)
    lanes = list(dict.fromkeys((_COMPUTE, *(bar.lane for bar in line.bars))))
    margin = max(len(lane) for lane in (*lanes, "exposed")) + 2
    scale = Scale(seconds=line.seconds, columns=width - margin)
    drawn = [bar for bar in line.bars if scale.covers(bar.start, bar.stop)]
    keys = _keys(drawn)
    rows = [_title(ordered, line), ""]
    for lane in lanes:
        marks = ((b.start, b.stop, keys[b.task.name], "=") for b in drawn if b.lane == lane)
        waiting = ((*gap, ".", ".") for gap in line.exposed if lane == _COMPUTE)
        rows.append(f"{lane:<{margin}}{scale.draw((*marks, *waiting))}".rstrip())
    if line.exposed:
        rows.append(
            f"{'exposed':<{margin}}{scale.draw((*g, '^', '^') for g in line.exposed)}".rstrip()
        )
    rows += [" " * margin + scale.axis(), "", *_legend(drawn, keys, width)]
    rows += _unseen([bar for bar in line.bars if bar not in drawn], width)
    return "\n".join(rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Seconds as columns: a column shows what is going on at its middle."""

    seconds: float
    columns: int

    def covers(self, start: float, stop: float) -> bool:
        """Whether the middle of some column lies between these times."""
        return self._column(start) < self._column(stop)

    def draw(self, marks: Iterable[tuple[float, float, str, str]]) -> str:
        """A row with each mark's key at its start and its filling behind."""
        row = [" "] * self.columns
        for start, stop, key, filling in marks:
            first, last = self._column(start), self._column(stop)
            if first < last:
                row[first:last] = [key, *filling * (last - first - 1)]
        return "".join(row)

    def axis(self) -> str:
        """Zero at the left, the whole time at the right."""
        end = render_seconds(self.seconds)
        return "0" + end.rjust(self.columns - 1)

    def _column(self, time: float) -> int:
        """The first column whose middle is at that time or later."""
        if self.seconds <= 0:
            return 0
        return min(round(time / self.seconds * self.columns), self.columns)


def render_seconds(seconds: float) -> str:
    """A time in three digits and the largest unit of which there is one.

    Example:
        >>> render_seconds(0.00213), render_seconds(0)
        ('2.13 ms', '0 us')
    """
    unit, size = next(((u, s) for u, s in _UNITS if seconds >= s), _UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


def _title(ordered: Ordered, line: Timeline) -> str:
    busy = sum(bar.stop - bar.start for bar in line.bars if is_collective(bar.task))
    waited = sum(stop - start for start, stop in line.exposed)
    total, wire, exposed = map(render_seconds, (line.seconds, busy, waited))
    return f"{ordered.program.name}: {total}; communication {wire}, of which {exposed} exposed"


def _keys(bars: Sequence[Bar]) -> dict[str, str]:
    """Letters for compute and digits for collectives in order of time; `*` when they run out."""
    letters, numbers = iter(ascii_letters), iter((*digits[1:], "0"))
    return {bar.task.name: next(letters if bar.lane == _COMPUTE else numbers, "*") for bar in bars}


def _legend(bars: Sequence[Bar], keys: dict[str, str], width: int) -> list[str]:
    entries = [
        f"{keys[bar.task.name]} {_label(bar.task)} {render_seconds(bar.stop - bar.start)}"
        for bar in sorted(bars, key=lambda bar: bar.lane != _COMPUTE)
    ]
    return list(_columns(entries, width))


def _unseen(bars: Sequence[Bar], width: int) -> Iterator[str]:
    if not bars:
        return
    total = render_seconds(sum(bar.stop - bar.start for bar in bars))
    yield ""
    yield f"too short to draw, {total} together:"
    yield from _columns([_label(bar.task) for bar in bars], width)


def _label(task: Task) -> str:
    return f"{task.name} ({_where(task)})" if is_collective(task) else task.name


def _columns(entries: Sequence[str], width: int) -> Iterator[str]:
    """Entries in columns of one width, read downwards."""
    cell = max(map(len, entries), default=0) + 2
    across = max((width - 2) // cell, 1)
    down = -(-len(entries) // across)
    for i in range(down):
        yield ("  " + "".join(f"{entry:<{cell}}" for entry in entries[i::down])).rstrip()

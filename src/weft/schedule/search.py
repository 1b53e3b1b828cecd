"""The order of one segment by search: list scheduling with look-ahead, then local improvement.

    1. sequences to start from: what the caller brings, and a list schedule in which each choice is
       judged by finishing the segment greedily from there
    2. from the best of them, moves: a task, with what must come along, to another place; a move
       stays if the segment does not get longer

A sequence is timed as `schedule.render.place` does it: one compute lane, one lane a channel. None
that needs more memory at its peak than the dearest order that the caller brings is taken. The
number of timings is bounded, not the seconds: every rank of a group must find the same order, so
nothing here may depend on how fast a machine is.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from weft.graph.program import Program, Task
from weft.schedule.action import Ordered, is_collective, is_open
from weft.schedule.sequence import in_sequence, starts

Price = Callable[[Task], float]
Size = Callable[[str], int]

TIMINGS = 9000  # a fifth of a second for a layer; benchmarks/bench_orders.py shows what more gives
_HEAT = 0.2  # of what is exposed at first: the most that a move may cost; 0.05 and 0.6 do worse
_MOST = 200  # tasks; two layers beside each other have 90. Beyond, no look-ahead and fewer timings
_ROUNDS = 3  # improvements from the same start, of which the best is taken
_ROUNDING = 1e-9  # of a segment's time: no difference


def search(
    program: Program,
    price: Price,
    size: Size,
    *,
    starting: Sequence[Ordered],
    seed: int = 0,
    timings: int = TIMINGS,
) -> Ordered:
    """The shortest order found, never longer than any it starts from nor dearer at its peak than
    the dearest of them; `size` gives the bytes of a value.
    """
    chart = _chart(program, price)
    names = {task.name: i for i, task in enumerate(program.tasks)}
    given = [[names[task.name] for task in starts(ordered)] for ordered in starting]
    memory = _Memory(program, size)
    bound = max(memory.peak(order) for order in given)
    count = len(program.tasks)
    ahead = _look_ahead(chart) if count <= _MOST else given[0]
    timings = timings * _MOST // max(count, _MOST)
    candidates = [*given, *([ahead] if memory.peak(ahead) <= bound else [])]
    best = min(candidates, key=chart.seconds)
    rounds = (
        _improve(chart, best, lambda order: memory.peak(order) <= bound, start, timings // _ROUNDS)
        for start in range(seed, seed + _ROUNDS)
    )
    found = min(rounds, key=chart.seconds)
    return in_sequence(program, [program.tasks[i] for i in found])


def peak_bytes(ordered: Ordered, size: Size) -> int:
    """The most bytes alive at once in an order, without parameters and other static tensors."""
    program = ordered.program
    names = {task.name: i for i, task in enumerate(program.tasks)}
    return _Memory(program, size).peak([names[task.name] for task in starts(ordered)])


# ---- time ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chart:
    """A program by number: prices, channels (-1 is the compute lane), and who needs whom.

    `before` and `behind` are sets as bits: all that must come before a task, all that come behind
    it. `landing` are the collectives whose results a task reads.
    """

    prices: tuple[float, ...]
    channels: tuple[int, ...]
    landing: tuple[tuple[int, ...], ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]
    needs: tuple[tuple[int, ...], ...]
    least: float

    def seconds(self, order: Sequence[int]) -> float:
        """How long the segment takes, to the end of the last collective."""
        prices, channels, landing = self.prices, self.channels, self.landing
        ends = [0.0] * len(prices)
        busy: dict[int, float] = {}
        now = 0.0
        for task in order:
            for flight in landing[task]:
                now = max(now, ends[flight])
            channel = channels[task]
            if channel < 0:
                now += prices[task]
            else:
                ends[task] = busy[channel] = max(now, busy.get(channel, 0.0)) + prices[task]
        return max(now, *busy.values()) if busy else now


def _chart(program: Program, price: Price) -> _Chart:
    tasks = program.tasks
    maker = {value: i for i, task in enumerate(tasks) for value in task.outputs}
    needs = [tuple({maker[v] for v in task.inputs if v in maker}) for task in tasks]
    before, behind = [0] * len(tasks), [0] * len(tasks)
    for i, sources in enumerate(needs):
        for source in sources:
            before[i] |= before[source] | 1 << source
    for i, above in enumerate(before):
        for j in _bits(above):
            behind[j] |= 1 << i
    prices = tuple(price(task) for task in tasks)
    names = sorted({task.channel for task in tasks if is_collective(task)})
    channels = tuple(names.index(t.channel) if is_collective(t) else -1 for t in tasks)
    return _Chart(
        prices=prices,
        channels=channels,
        landing=tuple(tuple(s for s in sources if channels[s] >= 0) for sources in needs),
        before=tuple(before),
        behind=tuple(behind),
        needs=tuple(needs),
        least=sum(p for p, channel in zip(prices, channels, strict=True) if channel < 0),
    )


def _bits(numbers: int) -> Iterator[int]:
    while numbers:
        lowest = numbers & -numbers
        yield lowest.bit_length() - 1
        numbers ^= lowest


# ---- memory --------------------------------------------------------------------------------------


class _Memory:
    """The bytes alive in a sequence: a value lives from its task to its last reader, an input from
    the start; what a collective reads lives until it is waited for.
    """

    def __init__(self, program: Program, size: Size) -> None:
        static = ("w.", "acc.", "s.")
        makers = program.producer()
        kept = {*program.outputs, *program.kept}
        kept.update(v for t in program.tasks if is_open(program, t) for v in t.inputs)
        self.made = [self._weights(t.outputs, size, static) for t in program.tasks]
        self.total = sum(size(v) for v in program.inputs if not v.startswith(static))
        self.holders: list[tuple[int, tuple[int, ...]]] = []
        place = {task.name: i for i, task in enumerate(program.tasks)}
        readers = program.consumers()
        for value in program.values:
            if value in kept or value.startswith(static):
                continue
            users = readers.get(value, [])
            behind = [t for u in users if is_collective(u) for v in u.outputs
                      for t in readers.get(v, [])]  # fmt: skip
            last = [place[t.name] for t in (*users, *behind)]
            if not last and value in makers:
                last = [place[makers[value].name]]
            if last:
                self.holders.append((size(value), tuple(last)))

    @staticmethod
    def _weights(values: Sequence[str], size: Size, static: tuple[str, ...]) -> int:
        return sum(size(v) for v in values if not v.startswith(static))

    def peak(self, order: Sequence[int]) -> int:
        """The most bytes alive at once."""
        turn = [0] * len(order)
        for position, task in enumerate(order):
            turn[task] = position
        gone = [0] * len(order)
        for weight, users in self.holders:
            gone[max(map(turn.__getitem__, users))] += weight
        alive = most = self.total
        for position, task in enumerate(order):
            alive += self.made[task]
            most = max(most, alive)
            alive -= gone[position]
        return most


# ---- look-ahead ----------------------------------------------------------------------------------


def _look_ahead(chart: _Chart) -> list[int]:
    """A list schedule: of all tasks that may go next the one from which the greedy end is best."""
    rank = _ranks(chart)
    order: list[int] = []
    done = 0
    while len(order) < len(chart.prices):
        ready = sorted(_ready(chart, done), key=lambda i: (-rank[i], i))
        if len(ready) > 1:
            ends = [(chart.seconds(_finish(chart, [*order, i], rank)), i) for i in ready[:_WIDTH]]
            best = min(ends)[1]
        else:
            best = ready[0]
        order.append(best)
        done |= 1 << best
    return order


_WIDTH = 6  # choices that are looked at: the most urgent ones


def _ranks(chart: _Chart) -> list[float]:
    """The longest way from the start of each task to the end."""
    ranks = list(chart.prices)
    for i in reversed(range(len(ranks))):
        for source in chart.needs[i]:
            ranks[source] = max(ranks[source], chart.prices[source] + ranks[i])
    return ranks


def _ready(chart: _Chart, done: int) -> list[int]:
    return [
        i for i, before in enumerate(chart.before) if not done >> i & 1 and before & done == before
    ]


def _finish(chart: _Chart, order: list[int], rank: Sequence[float]) -> list[int]:
    """The sequence finished greedily: collectives as soon as they can be posted, then the most
    urgent task whose inputs have arrived, then the one that can start first.
    """
    order = list(order)
    done = sum(1 << i for i in order)
    ends, busy, now = [0.0] * len(rank), dict[int, float](), 0.0
    for i in order:
        now = _advance(chart, i, now, ends, busy)
    while len(order) < len(rank):
        best = min(
            _ready(chart, done),
            key=lambda i: (
                max(now, *(ends[f] for f in chart.landing[i]), 0.0),
                chart.channels[i] < 0,
                -rank[i],
                i,
            ),
        )
        now = _advance(chart, best, now, ends, busy)
        order.append(best)
        done |= 1 << best
    return order


def _advance(
    chart: _Chart, task: int, now: float, ends: list[float], busy: dict[int, float]
) -> float:
    """When the compute lane is free after starting a task."""
    now = max((now, *(ends[flight] for flight in chart.landing[task])))
    channel = chart.channels[task]
    if channel < 0:
        return now + chart.prices[task]
    ends[task] = busy[channel] = max(now, busy.get(channel, 0.0)) + chart.prices[task]
    return now


# ---- moves ---------------------------------------------------------------------------------------


def _improve(
    chart: _Chart,
    start: list[int],
    fits: Callable[[Sequence[int]], bool],
    seed: int,
    timings: int,
) -> list[int]:
    """Moves, also ones that make it a little longer: up to a threshold that is drawn below a
    falling bound; ends when nothing is exposed or the timings are used up.
    """
    chance = random.Random(seed)
    order, best = start, start
    now = shortest = chart.seconds(start)
    heat = _HEAT * (shortest - chart.least)
    for left in range(timings, 0, -1):
        if shortest <= chart.least * (1 + _ROUNDING):
            break
        moved = _move(chart, order, chance)
        time = chart.seconds(moved)
        if time > now + heat * left / timings * chance.random() or not fits(moved):
            continue
        order, now = moved, time
        if now < shortest:
            best, shortest = order, now
    return best


def _move(chart: _Chart, order: list[int], chance: random.Random) -> list[int]:
    """A task to another place; forwards with what it needs, backwards with what needs it."""
    start, stop = chance.randrange(len(order)), chance.randrange(len(order))
    task = order[start]
    if stop < start:
        window, along = order[stop:start], chart.before[task]
        with_it = [i for i in window if along >> i & 1]
        others = [i for i in window if not along >> i & 1]
        return [*order[:stop], *with_it, task, *others, *order[start + 1 :]]
    window, along = order[start + 1 : stop + 1], chart.behind[task]
    with_it = [i for i in window if along >> i & 1]
    others = [i for i in window if not along >> i & 1]
    return [*order[:start], *others, task, *with_it, *order[stop + 1 :]]

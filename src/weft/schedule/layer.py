"""Orders of one segment: serial, overlapped, and random legal ones for tests.

serial      program order; each collective is waited for at once
overlapped  collectives are posted as soon as their inputs exist and waited for as late as
            possible; what nobody on the way to the next collective needs (weight gradients,
            first of all) runs under them

What arrives in flight from an earlier segment is joined like a collective of this one, at first in
serial order; what leaves in flight is posted only.
"""

import random
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from weft.graph.program import Program, Task
from weft.schedule.action import (
    Action,
    Join,
    Ordered,
    Post,
    Run,
    Wait,
    is_collective,
    is_open,
    with_frees,
)

Price = Callable[[Task], float]


def serial(program: Program) -> Ordered:
    """Every task in program order, no two at once."""
    actions: list[Action] = [Join(value) for value in program.joins]
    for task in program.tasks:
        if not is_collective(task):
            actions.append(Run(task))
        elif is_open(program, task):
            actions.append(Post(task))
        else:
            actions.extend((Post(task), Wait(task)))
    return Ordered(program=program, actions=with_frees(program, actions))


def overlapped(program: Program, price: Price) -> Ordered:
    """Communication beside compute: what hides a collective is chosen by its price.

    While something is in flight, tasks that lead to a later collective run first; then, as long as
    the time in flight is not yet covered, tasks that lead to none; only then does the compute lane
    wait.
    """
    state = _State(program)
    urgent = _leads_to_collective(program)
    while state.pending:
        posts = state.posts()
        if posts:
            state.post(posts[0], price(posts[0]))
            continue
        runnable = state.runs()
        lead = next((t for t in runnable if t.name in urgent), None)
        filler = _best_fit([t for t in runnable if t.name not in urgent], price, state.uncovered())
        if lead is not None:
            state.run(lead, price(lead))
        elif filler is not None and (state.uncovered() > 0 or not state.flying):
            state.run(filler, price(filler))
        else:
            state.wait()
    state.drain()
    return Ordered(program=program, actions=with_frees(program, state.actions))


def _best_fit(fillers: Sequence[Task], price: Price, time: float) -> Task | None:
    """The cheapest task that covers a time, else the dearest; with nothing to cover the first."""
    if time <= 0 or not fillers:
        return next(iter(fillers), None)
    enough = [task for task in fillers if price(task) >= time]
    return min(enough, key=price) if enough else max(fillers, key=price)


def shuffled(program: Program, seed: int) -> Ordered:
    """A random legal order: any order that data flow and the issue order of each group allow."""
    chance = random.Random(seed)
    state = _State(program)
    while state.pending:
        choices = state.ready()
        if not choices or (state.flying and chance.random() < 1 / 4):  # a wait now and then
            state.wait(chance.randrange(len(state.flying)))
            continue
        task = chance.choice(choices)
        state.post(task, 1) if is_collective(task) else state.run(task, 1)
    state.drain()
    return Ordered(program=program, actions=with_frees(program, state.actions))


class _State:
    """An order under construction: what is done, what is in flight, and which tasks may go next."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.actions: list[Action] = []
        self.pending = len(program.tasks)
        self.flying: list[Wait | Join] = [Join(value) for value in program.joins]
        self.left = [0.0] * len(self.flying)  # of what comes from elsewhere nobody here knows
        self.available: set[str] = set()
        self.place = {task.name: i for i, task in enumerate(program.tasks)}
        self.readers = program.consumers()
        self.missing = {task.name: len(set(task.inputs)) for task in program.tasks}
        self.lines: dict[str, deque[Task]] = {}  # of each channel the collectives still to come
        self.runnable: list[int] = []  # places of the other tasks whose inputs exist
        for task in program.tasks:
            if is_collective(task):
                self.lines.setdefault(task.channel, deque()).append(task)
            elif not task.inputs:
                self.runnable.append(self.place[task.name])
        self._arrive(set(program.inputs).difference(program.joins))

    def ready(self) -> list[Task]:
        """Tasks whose inputs exist, in program order; of each channel only the next collective."""
        return self._in_order((*self.posts(), *self.runs()))

    def posts(self) -> list[Task]:
        """Those of them that are collectives."""
        heads = (line[0] for line in self.lines.values() if line)
        return self._in_order(task for task in heads if not self.missing[task.name])

    def runs(self) -> list[Task]:
        """Those of them that are none."""
        return [self.program.tasks[place] for place in self.runnable]

    def _in_order(self, tasks: Iterable[Task]) -> list[Task]:
        return sorted(tasks, key=lambda task: self.place[task.name])

    def _arrive(self, values: Iterable[str]) -> None:
        """Counts values as there for all that read them."""
        for value in set(values) - self.available:
            for task in self.readers.get(value, ()):
                self.missing[task.name] -= 1
                if not self.missing[task.name] and not is_collective(task):
                    insort(self.runnable, self.place[task.name])
        self.available.update(values)

    def post(self, task: Task, time: float) -> None:
        self.actions.append(Post(task))
        self.lines[task.channel].popleft()
        self.pending -= 1
        if not is_open(self.program, task):
            self.flying.append(Wait(task))
            self.left.append(time)

    def run(self, task: Task, time: float) -> None:
        self.actions.append(Run(task))
        self.runnable.remove(self.place[task.name])
        self.pending -= 1
        self._arrive(task.outputs)
        self.left = [left - time for left in self.left]

    def wait(self, which: int = 0) -> None:
        closing = self.flying.pop(which)
        self.actions.append(closing)
        self._arrive(closing.task.outputs if isinstance(closing, Wait) else (closing.value,))
        del self.left[which]

    def uncovered(self) -> float:
        """How much longer the collective that is waited for next is in flight."""
        return self.left[0] if self.flying else 0

    def drain(self) -> None:
        while self.flying:
            self.wait()


def _leads_to_collective(program: Program) -> set[str]:
    """Names of tasks that some later collective depends on."""
    producer = program.producer()
    urgent: set[str] = set()
    frontier = [t for t in program.tasks if is_collective(t)]
    while frontier:
        task = frontier.pop()
        for value in task.inputs:
            maker = producer.get(value)
            if maker is not None and maker.name not in urgent:
                urgent.add(maker.name)
                frontier.append(maker)
    return urgent

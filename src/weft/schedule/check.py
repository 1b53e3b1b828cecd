"""The checker: an order is legal, or the first broken rule is named.

Rules: a task runs once, after everything it reads is there (a collective's outputs are there after
its wait, those of an open one never); what arrives in flight is joined once, before it is read;
each channel (an axis and a lane) issues its collectives in program order; a value is freed once,
after its last reader, never while a collective in flight reads it, and outputs are not freed.
"""

from collections.abc import Iterator

from weft.errors import ProgramError
from weft.graph.program import Program, Task
from weft.schedule.action import Free, Join, Ordered, Post, Run, Wait, is_collective, is_open


def check(ordered: Ordered) -> Ordered:
    """Returns the order if it is legal.

    Raises:
        ProgramError: the rule broken, the action and its position.
    """
    checker = _Checker(ordered.program)
    for position, action in enumerate(ordered.actions):
        match action:
            case Run(task):
                problem = checker.run(task)
            case Post(task):
                problem = checker.post(task)
            case Wait(task):
                problem = checker.wait(task)
            case Join(value):
                problem = checker.join(value)
            case Free(value):
                problem = checker.free(value)
        if problem:
            raise ProgramError(f"{ordered.program.name}, action {position}: {problem}")
    for problem in checker.leftovers():
        raise ProgramError(f"{ordered.program.name}: {problem}")
    return ordered


class _Checker:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.tasks = {task.name: task for task in program.tasks}
        self.arriving = set(program.joins)
        self.there = set(program.inputs) - self.arriving
        self.started: set[str] = set()
        self.flying: dict[str, Task] = {}
        self.freed: set[str] = set()
        self.queues: dict[str, list[str]] = {}
        for task in program.tasks:
            if is_collective(task):
                self.queues.setdefault(task.channel, []).append(task.name)

    def run(self, task: Task) -> str | None:
        if is_collective(task):
            return f"{task.name} is a collective: post it and wait for it"
        problem = self._start(task)
        self.there.update(task.outputs)
        return problem

    def post(self, task: Task) -> str | None:
        if not is_collective(task):
            return f"{task.name} is no collective: run it"
        problem = self._start(task)
        if problem:
            return problem
        expected = self.queues[task.channel].pop(0)
        if expected != task.name:
            return f"group {task.channel} must issue {expected} before {task.name}"
        self.flying[task.name] = task
        return None

    def wait(self, task: Task) -> str | None:
        if is_open(self.program, task):
            return f"{task.name} is left open: a later segment waits for it"
        if self.flying.pop(task.name, None) is None:
            return f"{task.name} is waited for but not in flight"
        self.there.update(task.outputs)
        return None

    def join(self, value: str) -> str | None:
        if value not in self.arriving:
            return f"{value} is joined but not on its way here"
        self.arriving.remove(value)
        self.there.add(value)
        return None

    def free(self, value: str) -> str | None:
        if value not in self.there or value in self.freed:
            return f"{value} is freed but not there"
        if value in self.program.outputs or value in self.program.kept:
            return f"{value} is an output and may not be freed"
        reader = next((t.name for t in self.flying.values() if value in t.inputs), None)
        if reader:
            return f"{value} is freed while {reader} is in flight"
        self.freed.add(value)
        return None

    def _start(self, task: Task) -> str | None:
        if self.tasks.get(task.name) != task:
            return f"{task.name} is not a task of this program"
        if task.name in self.started:
            return f"{task.name} starts twice"
        self.started.add(task.name)
        gone = [v for v in task.inputs if v in self.freed]
        if gone:
            return f"{task.name} reads {gone} after it was freed"
        missing = [v for v in task.inputs if v not in self.there]
        return f"{task.name} reads {missing}, not there yet" if missing else None

    def leftovers(self) -> Iterator[str]:
        forgotten = [t.name for t in self.program.tasks if t.name not in self.started]
        if forgotten:
            yield f"{forgotten} never run"
        waited = [t.name for t in self.flying.values() if not is_open(self.program, t)]
        if waited:
            yield f"{sorted(waited)} are never waited for"
        if self.arriving:
            yield f"{sorted(self.arriving)} arrive in flight and are never joined"

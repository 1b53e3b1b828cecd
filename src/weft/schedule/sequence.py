"""An order as a sequence of tasks: each starts in its turn, a collective is waited for at its first
reader.

Waiting earlier never helps, so a sequence says everything about an order. Its program has the tasks
in that sequence too: the order in which channels issue their collectives is part of a program, and
choosing a sequence chooses it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from weft.graph.program import Program, Task, verify
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
from weft.schedule.remat import is_again

CHUNK = "/"  # in the name of a task or value, before the number of its chunk (schedule.decompose)
LATER = " later"  # behind the key of a collective of any chunk but the first


def in_sequence(program: Program, tasks: Sequence[Task]) -> Ordered:
    """The order that starts the tasks in this sequence and waits as late as it can.

    Raises:
        ProgramError: a task stands before one whose output it reads.
    """
    moved = verify(replace(program, tasks=tuple(tasks)))
    arriving: dict[str, Wait | Join] = {value: Join(value) for value in program.joins}
    actions: list[Action] = []
    for task in tasks:
        actions += _arrivals(arriving, task.inputs)
        if not is_collective(task):
            actions.append(Run(task))
            continue
        actions.append(Post(task))
        if not is_open(program, task):
            arriving.update(dict.fromkeys(task.outputs, Wait(task)))
    actions += _arrivals(arriving, tuple(arriving))
    return Ordered(program=moved, actions=with_frees(moved, actions))


def _arrivals(arriving: dict[str, Wait | Join], values: Iterable[str]) -> list[Wait | Join]:
    """The waits for those of these values that are on their way."""
    return [arriving.pop(value) for value in values if value in arriving]


def starts(ordered: Ordered) -> tuple[Task, ...]:
    """The sequence of an order: its tasks as they start."""
    return tuple(action.task for action in ordered.actions if isinstance(action, Run | Post))


def listed(program: Program, keys: Sequence[str]) -> tuple[Task, ...]:
    """The tasks in the order of a list of keys, each behind what it depends on; a task that is not
    listed comes when it is needed, or at the end, and a later chunk's collective with the first
    one's.
    """
    rank = {key: position for position, key in enumerate(keys)}
    made = program.producer()
    done: dict[str, Task] = {}

    def place(task: Task) -> int:
        key = task_key(task)
        return rank.get(key, rank.get(key.removesuffix(LATER), len(keys)))

    for task in sorted(program.tasks, key=place):
        _take(task, made, done)
    return tuple(done.values())


def _take(task: Task, made: Mapping[str, Task], done: dict[str, Task]) -> None:
    if task.name in done:
        return
    for value in task.inputs:
        if value in made:
            _take(made[value], made, done)
    done[task.name] = task


def task_key(task: Task) -> str:
    """What a task is in a list made by hand: its body, and the payload or the weight it is about.
    That of a chunk says so; of a collective the first chunk has the key of the whole one.

    Example:
        >>> task = Task(name="again.rms_norm", body="rms_norm", inputs=("x", "w.norm1"), outputs=())
        >>> task_key(task)
        'again rms_norm norm1'
    """
    weights = (v.rpartition(".")[2] for v in task.inputs if v.startswith("w."))
    sums = (v.rpartition(".")[2] for v in task.inputs if v.startswith("acc.w."))
    about = task.attributes.get("label") or next(iter((*sums, *weights)), None)
    again = "again" if is_again(task) else None
    key = " ".join(str(part) for part in (again, task.body, about) if part)
    chunk = task.name.partition(CHUNK)[2]
    if is_collective(task):
        return key if chunk in ("", "0") else f"{key}{LATER}"
    return f"{key} {chunk}" if chunk else key


def interleaved(program: Program, price: Callable[[Task], float]) -> Program:
    """Independent strands of a program (`graph.braid`) in turn, each by the share of its own time
    that has passed; the first word of a task's name is its strand.
    """
    total: dict[str, float] = {}
    middle: dict[str, float] = {}
    for task in program.tasks:
        strand, cost = task.name.partition(".")[0], price(task)
        middle[task.name] = total.get(strand, 0.0) + cost / 2
        total[strand] = total.get(strand, 0.0) + cost
    share = {t.name: middle[t.name] / total[t.name.partition(".")[0]] for t in program.tasks}
    tasks = sorted(program.tasks, key=lambda task: share[task.name])
    return verify(replace(program, tasks=tuple(tasks)))

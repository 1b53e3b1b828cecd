"""Sequences of a program replaced by the fused operators that a backend offers.

    rows = permute(y_3, order, slot_row)       u, s = permute_up_swiglu(y_3, order, slot_row, w.up,
    u    = expert_up(rows, w.up, ends)                                  ends, row_weights)
    s    = swiglu(u, row_weights, ends)

A sequence is replaced where all that it makes and does not give is read by itself alone. A copy (a
gather of rows) may stand in several sequences: each reads it where it lies, as long as every reader
does. The fused task stands where its last part stood, or before what reads it there already.

What only a sequence of the backward makes again need not be kept: `fuse` drops from what a forward
keeps the operands that the fused operators of its backward find for themselves, and copies of what
is kept anyway, which nobody should pay for twice.

Paper: 2.2, 2.3.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from weft.graph.backward import Differentiated
from weft.graph.fused import COPIES, FUSED, Fused, Part
from weft.graph.program import Attribute, Program, Task, verify
from weft.schedule.remat import recipes, rematerialise
from weft.schedule.sequence import listed


@dataclass(frozen=True, kw_only=True, slots=True)
class _Match:
    """A sequence found in a program: its tasks in order, and the value behind each of its names."""

    fused: Fused
    tasks: tuple[Task, ...]
    names: Mapping[str, str]

    @property
    def reads(self) -> set[str]:
        return {self.names[name] for name in self.fused.reads}

    @property
    def gives(self) -> set[str]:
        return {self.names[name] for name in self.fused.gives}

    @property
    def hidden(self) -> set[str]:
        """What it makes and does not give."""
        return {name for task in self.tasks for name in task.outputs} - self.gives


def fuse(derived: Differentiated, offered: Collection[str]) -> Differentiated:
    """The same derivatives by fused operators; what these make again is not kept.

    A value is made again only where the task that would do so vanishes into a fused one, or copies
    what is kept anyway.
    """
    if not offered:
        return derived
    copies = _copies(derived)
    again = _made_inside(derived, offered) | copies
    while True:
        rewritten = rematerialise(derived, again)
        backward = fuse_program(rewritten.backward, offered)
        makers = backward.producer()
        standing = {name for name in again if name in makers and makers[name].body not in FUSED}
        if standing <= copies:
            return Differentiated(
                forward=fuse_program(rewritten.forward, offered), backward=backward
            )
        again -= standing - copies


def fuse_program(program: Program, offered: Collection[str]) -> Program:
    """The program with the sequences of these fused operators replaced, longest sequences first."""
    matches = _settle(program, _found(program, offered))
    if not matches:
        return program
    numbers = Counter[str]()
    fused: dict[str, Task] = {}
    for match in matches:
        body = match.fused.body
        numbers[body] += 1
        name = body if numbers[body] == 1 else f"{body}_{numbers[body]}"
        fused[match.tasks[-1].name] = _task(match, name)
    gone = {task.name for match in matches for task in match.tasks}
    tasks = [fused.get(t.name, t) for t in program.tasks if t.name in fused or t.name not in gone]
    made = {*program.inputs, *(name for task in tasks for name in task.outputs)}
    values = {name: value for name, value in program.values.items() if name in made}
    rewritten = replace(program, values=MappingProxyType(values), tasks=tuple(tasks))
    return verify(replace(rewritten, tasks=listed(rewritten, ())))


# ---- finding -------------------------------------------------------------------------------------


def _made_inside(derived: Differentiated, offered: Collection[str]) -> set[str]:
    """Kept values that a forward part of an offered sequence of a backward could make again."""
    sequences = (FUSED[name] for name in offered if "." in name)
    bodies = {part.body for fused in sequences for part in fused.parts if "." not in part.body}
    kept, makers = derived.forward.kept, recipes(derived.forward)
    return {name for name in kept if name in makers and makers[name].body in bodies}


def _copies(derived: Differentiated) -> set[str]:
    """Kept values that are copies of what the backward reads all the same."""
    read = {*derived.backward.inputs}
    makers = recipes(derived.forward)
    kept = (name for name in derived.forward.kept if name in makers)
    return {n for n in kept if makers[n].body in COPIES and read.issuperset(makers[n].inputs)}


def _found(program: Program, offered: Collection[str]) -> list[_Match]:
    longest = sorted((FUSED[name] for name in offered), key=lambda fused: -len(fused.parts))
    return [match for fused in longest for match in _matches(program, fused)]


def _matches(program: Program, fused: Fused) -> Iterator[_Match]:
    """Every way in which the parts of a sequence are tasks of the program."""
    partial: list[tuple[tuple[Task, ...], dict[str, str]]] = [((), {})]
    for part in fused.parts:
        tasks = [task for task in program.tasks if task.body == part.body]
        partial = [
            ((*before, task), names)
            for before, bound in partial
            for task in tasks
            if (names := _unified(part, task, bound)) is not None
        ]
    for tasks, names in partial:
        if _agree(tasks):
            yield _Match(fused=fused, tasks=tasks, names=MappingProxyType(names))


def _unified(part: Part, task: Task, bound: Mapping[str, str]) -> dict[str, str] | None:
    """The names of a sequence bound to this task's values too, or none where they differ."""
    names = dict(bound)
    pairs = (
        *zip(part.inputs, task.inputs, strict=True),
        *zip(part.outputs, task.outputs, strict=True),
    )
    for name, value in pairs:
        if names.setdefault(name, value) != value:
            return None
    return names if {*task.attributes} == {*part.attributes} else None


def _agree(tasks: Sequence[Task]) -> bool:
    """Whether no two of the tasks give an attribute or a letter another meaning."""
    attributes, renames = (task.attributes for task in tasks), (task.renames for task in tasks)
    return _consistent(attributes) and _consistent(renames)


def _consistent(said: Iterable[Mapping[str, Attribute]]) -> bool:
    together: dict[str, Attribute] = {}
    return all(
        together.setdefault(key, value) == value for one in said for key, value in one.items()
    )


# ---- choosing ------------------------------------------------------------------------------------


def _settle(program: Program, found: Sequence[_Match]) -> list[_Match]:
    """The matches that can be replaced together: earlier ones first, and what one hides nobody
    else reads.
    """
    left = list(found)
    while True:
        chosen = _disjoint(left)
        refused = [match for match in chosen if not _is_legal(program, match, chosen)]
        if not refused:
            return chosen
        left = [match for match in left if match not in refused]


def _disjoint(found: Sequence[_Match]) -> list[_Match]:
    """Matches that share no task but copies."""
    chosen: list[_Match] = []
    taken: set[str] = set()
    for match in found:
        own = {task.name for task in match.tasks if task.body not in COPIES}
        if taken.isdisjoint(own):
            chosen.append(match)
            taken |= own
    return chosen


def _is_legal(program: Program, match: _Match, chosen: Sequence[_Match]) -> bool:
    """Whether every reader of what it hides hides it too, and nothing it reads follows from it."""
    leaving = {*program.outputs, *program.kept}
    for name in match.hidden:
        inside = {t.name for other in chosen if name in other.hidden for t in other.tasks}
        readers = (task.name for task in program.tasks if name in task.inputs)
        if name in leaving or not inside.issuperset(readers):
            return False
    return match.reads.isdisjoint(_following(program, match))


def _following(program: Program, match: _Match) -> set[str]:
    """The values that other tasks make from what it gives."""
    given, made = match.gives, set[str]()
    own = {task.name for task in match.tasks}
    for task in program.tasks:
        if task.name not in own and not (given | made).isdisjoint(task.inputs):
            made.update(task.outputs)
    return made


# ---- replacing -----------------------------------------------------------------------------------


def _task(match: _Match, name: str) -> Task:
    fused, names = match.fused, match.names
    attributes = {k: v for task in match.tasks for k, v in task.attributes.items()}
    renames = {k: v for task in match.tasks for k, v in task.renames.items()}
    return Task(
        name=name,
        body=fused.body,
        inputs=tuple(names[name] for name in fused.reads),
        outputs=tuple(names[name] for name in fused.gives),
        attributes=MappingProxyType(attributes),
        renames=MappingProxyType(renames),
    )

"""Rematerialisation: which forward values a backward makes again instead of keeping them.

    forward   ... u = expert_up(..)  s = swiglu(u, ..)  d = expert_down(s, ..)           keeps u, s
    backward  ... acc' = expert_down.wgrad(acc, d.d, s)

    forward   the same                                                                   keeps u
    backward  ... s = swiglu(u, ..)  acc' = expert_down.wgrad(acc, d.d, s)

A value made again has its forward name, and the task that makes it stands just before its first
reader, with whatever it needs in front of it. Program order is also the order in which a group
issues its collectives, so a collective that runs again has its place among the others.

Which values to make again is chosen in `schedule.keep`. What may not run twice is decided here:
effects (a loss added to its sum), decisions (integers and host values of the routing) and their
synchronisations.

Paper: 2.2, 2.4.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from weft.errors import ProgramError
from weft.graph.backward import Differentiated
from weft.graph.program import Program, Task, Value, verify

PREFIX = "again."
_DECISIONS = ("i32", "i64", "host")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shortcut:
    """How outputs of an operator follow from another of its outputs: `y, rstd` of `s` and `w`."""

    body: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


# The residual sum is kept, its norm is run again from it: without the projection that made it.
_SHORTCUTS: Mapping[str, _Shortcut] = MappingProxyType(
    {"add_rms_norm": _Shortcut(body="rms_norm", inputs=("s", "w"), outputs=("y", "rstd"))}
)


def rematerialise(derived: Differentiated, again: Collection[str]) -> Differentiated:
    """The same derivatives from fewer kept values: those in `again` are made again where needed.

    Values that a chain starts from, and that are not in `again` themselves, are kept.

    Raises:
        ProgramError: a value that no task of the forward makes, or one that may not run twice.
    """
    makers = recipes(derived.forward)
    for name in again:
        if name not in makers:
            raise ProgramError(
                f"{derived.forward.name}: {name} cannot be made again; "
                f"what can: {', '.join(makers)}"
            )
    chosen = frozenset(again)
    walk = _Walk(derived, chosen, recipes(derived.forward, chosen))
    for task in derived.backward.tasks:
        walk.take(task)
    return walk.finish()


def recipes(forward: Program, again: Collection[str] = ()) -> Mapping[str, Task]:
    """The task that makes each value again, for all that may be made twice.

    A shortcut starts from another output of its task; where that is made `again` too, the task
    gives everything at once.
    """
    made: dict[str, Task] = {}
    for task in forward.tasks:
        if not is_repeatable(task):
            continue
        short = _shortcut(task)
        if short is not None and not {*again}.isdisjoint({*short.inputs} & {*task.outputs}):
            short = None
        for name in task.outputs:
            made[name] = short if short is not None and name in short.outputs else task
    return made


def is_repeatable(task: Task) -> bool:
    """Whether a task may run a second time: it decides nothing and adds to nothing."""
    return not is_effect(task) and all(p.kind not in _DECISIONS for p in task.op.outputs)


def is_effect(task: Task) -> bool:
    """Whether a task adds to a running sum: it returns the successor of one of its inputs.

    Example:
        >>> def made(body):
        ...     return Task(name="t", body=body, inputs=(), outputs=())
        >>> is_effect(made("router_losses")), is_effect(made("rms_norm"))
        (True, False)
    """
    sums = {(p.dims, p.kind) for p in task.op.outputs if not p.differentiable}
    return any(
        (p.dims, p.kind) in sums and p.kind == "acc" and not p.differentiable
        for p in task.op.inputs
    )


def is_again(task: Task) -> bool:
    """Whether a task of a backward runs a forward operator for the second time."""
    return f".{PREFIX}" in f".{task.name}"


def _shortcut(task: Task) -> Task | None:
    """The shorter task for the outputs that follow from another output, where there is one."""
    if task.body not in _SHORTCUTS:
        return None
    short = _SHORTCUTS[task.body]
    names = dict(zip((p.name for p in task.op.inputs), task.inputs, strict=True))
    names.update(zip((p.name for p in task.op.outputs), task.outputs, strict=True))
    return replace(
        task,
        body=short.body,
        inputs=tuple(names[port] for port in short.inputs),
        outputs=tuple(names[port] for port in short.outputs),
    )


class _Walk:
    """One backward being written anew: its tasks, and what it reads from outside."""

    def __init__(
        self, derived: Differentiated, again: frozenset[str], makers: Mapping[str, Task]
    ) -> None:
        self.derived = derived
        self.again = again
        self.makers = makers
        self.values: dict[str, Value] = dict(derived.backward.values)
        self.tasks: list[Task] = []
        self.inputs: dict[str, None] = {}
        self.made: set[str] = set()

    def take(self, task: Task) -> None:
        for name in task.inputs:
            self._provide(name)
        self._append(task)

    def _provide(self, name: str) -> None:
        """Puts a value in front of its reader: made already, made again, or read from outside."""
        if name in self.made or name in self.inputs:
            return
        if name not in self.again:
            self.inputs[name] = None
            if name not in self.values:
                self.values[name] = self.derived.forward.values[name]
            return
        task = self.makers[name]
        for source in task.inputs:
            self._provide(source)
        for output in task.outputs:
            value = self.derived.forward.values[output]
            self.values[self._label(output)] = replace(value, name=self._label(output))
        outputs = tuple(map(self._label, task.outputs))
        self._append(replace(task, name=f"{PREFIX}{task.name}", outputs=outputs))

    def _label(self, output: str) -> str:
        """An output that is kept all the same comes out a second time under another name."""
        return output if output in self.again else f"{PREFIX}{output}"

    def _append(self, task: Task) -> None:
        self.tasks.append(task)
        self.made.update(task.outputs)

    def finish(self) -> Differentiated:
        forward, before = self.derived.forward, self.derived.backward
        first = [name for name in before.inputs if name in self.inputs or name in before.outputs]
        inputs = tuple(dict.fromkeys((*first, *self.inputs)))
        held = {*inputs, *self.made}
        backward = replace(
            before,
            values={name: value for name, value in self.values.items() if name in held},
            inputs=inputs,
            tasks=tuple(self.tasks),
        )
        produced = forward.producer()
        kept = tuple(name for name in inputs if name in produced)
        return Differentiated(
            forward=verify(replace(forward, kept=kept)), backward=verify(backward)
        )

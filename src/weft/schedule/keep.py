"""Which values a forward keeps: the best trade of bytes against work, found exactly.

Each value that a backward reads is kept (its bytes are paid) or made again (its task is paid, and
what that task reads must be there in turn). With a rate of exchange between bytes and work, the
best choice is a minimum cut:

    source --inf--> v            v is read by the backward
    v      --bytes x rate--> t   v is kept, although it is needed and t does not run again
    t      --work--> sink        t runs again
    t      --inf--> u            then what it reads is needed too

`lightest` lets a byte outweigh any work. `cheapest` finds the least work within a number of bytes:
the cuts at every rate are the corners of a convex frontier, and branch and bound closes the gap
between two of them.

Paper: 2.2.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from weft.errors import ProgramError
from weft.graph.backward import Differentiated
from weft.graph.opset import Tolerance
from weft.graph.program import Task
from weft.schedule.cut import SINK, SOURCE, Edge, minimum_cut
from weft.schedule.remat import recipes

Node = tuple[str, str]
_HEAVY = (Tolerance.MATMUL, Tolerance.ATTENTION)


def is_heavy(task: Task) -> bool:
    """Whether a task is a long product: those the paper never runs twice."""
    return task.op.tolerance in _HEAVY


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a backward reads, which task makes a value again, and what either costs.

    `held` values are kept where they are needed, `dropped` ones are not.
    """

    title: str
    read: tuple[str, ...]
    makers: Mapping[str, Task]
    size: Mapping[str, int]
    work: Mapping[Node, int]
    held: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()


def ask(
    derived: Differentiated,
    *,
    size: Callable[[str], int],
    work: Callable[[Task], int],
    allowed: Callable[[Task], bool] = lambda _: True,
) -> Question:
    """The question of a layer: bytes of a value and work of a task in whole units; `allowed` says
    which tasks may run again of those that can.
    """
    forward = derived.forward
    produced = forward.producer()
    makers = {name: task for name, task in recipes(forward).items() if allowed(task)}
    return Question(
        title=forward.name,
        read=tuple(name for name in derived.backward.inputs if name in produced),
        makers=makers,
        size={name: size(name) for name in produced},
        work={_node(task): work(task) for task in makers.values()},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What is kept, what is made again, and what either costs."""

    kept: frozenset[str]
    again: frozenset[str]
    kept_bytes: int
    work: int


def lightest(question: Question) -> Choice:
    """The choice that keeps the fewest bytes, and of those the one with the least work."""
    found = _at_rate(question, byte=_outweighing(question), work=1)
    assert found is not None, f"{question.dropped=} without a way to make them"
    return found


def cheapest(question: Question, *, budget: int) -> Choice:
    """The choice with the least work that keeps at most `budget` bytes.

    Raises:
        ProgramError: even the lightest choice keeps more; its bytes are named.
    """
    least = lightest(question)
    if least.kept_bytes > budget:
        raise ProgramError(
            f"{question.title}: found room for {budget} bytes a layer, at least "
            f"{least.kept_bytes} are kept for its backward"
        )
    return _search(question, budget, least)


def _search(question: Question, budget: int, best: Choice) -> Choice:
    """Branch and bound: the frontier bounds what is possible, and names a value to decide about."""
    corners = _frontier(question, budget)
    if corners is None:
        return best
    fits, exceeds = corners
    best = min(best, fits, key=lambda choice: (choice.work, choice.kept_bytes))
    if exceeds is fits or _bound(fits, exceeds, budget) >= best.work:
        return best
    value = max(sorted(exceeds.kept - fits.kept - question.held), key=question.size.__getitem__)
    held = replace(question, held=question.held | {value})
    dropped = replace(question, dropped=question.dropped | {value})
    return _search(dropped, budget, _search(held, budget, best))


def _frontier(question: Question, budget: int) -> tuple[Choice, Choice] | None:
    """The corners on either side of the budget; one twice where it is the last or the exact one."""
    fits = _at_rate(question, byte=_outweighing(question), work=1)
    if fits is None or fits.kept_bytes > budget:
        return None
    exceeds = _at_rate(question, byte=1, work=_outweighing_work(question))
    assert exceeds is not None, "what can be cut at one rate can be cut at any"
    if exceeds.kept_bytes <= budget:
        return exceeds, exceeds
    while True:
        byte, work = fits.work - exceeds.work, exceeds.kept_bytes - fits.kept_bytes
        corner = _at_rate(question, byte=byte, work=work)
        assert corner is not None, "what can be cut at one rate can be cut at any"
        if (
            byte * corner.kept_bytes + work * corner.work
            >= byte * fits.kept_bytes + work * fits.work
        ):
            return fits, exceeds
        if corner.kept_bytes <= budget:
            fits = corner
        else:
            exceeds = corner


def _bound(fits: Choice, exceeds: Choice, budget: int) -> float:
    """The least work of any choice within the budget: the line between two corners."""
    slope = (fits.work - exceeds.work) / (exceeds.kept_bytes - fits.kept_bytes)
    return fits.work - slope * (budget - fits.kept_bytes)


def _outweighing(question: Question) -> int:
    """A rate at which one byte outweighs all work."""
    return 1 + sum(question.work.values())


def _outweighing_work(question: Question) -> int:
    """A rate at which any work outweighs all bytes."""
    return 1 + sum(question.size.values())


# ---- one cut -------------------------------------------------------------------------------------


def _at_rate(question: Question, *, byte: int, work: int) -> Choice | None:
    """The best choice at a rate of exchange, or none where a dropped value cannot be made."""
    size, makers = question.size, question.makers
    endless = 1 + byte * sum(size.values()) + work * sum(question.work.values())
    total, side = minimum_cut(_edges(question, byte, work, endless))
    if total >= endless:
        return None
    needed = [name for name in size if name in side]
    again = {n for n in needed if n in makers and _node(makers[n]) in side} - question.held
    kept = frozenset(needed) - again
    ran = {_node(makers[name]) for name in again}
    return Choice(
        kept=kept,
        again=frozenset(again),
        kept_bytes=sum(size[name] for name in kept),
        work=sum(question.work[node] for node in ran),
    )


def _edges(question: Question, byte: int, work: int, endless: int) -> Iterator[Edge]:
    size, makers = question.size, question.makers
    for name in question.read:
        yield SOURCE, name, endless
    for name, bytes_ in size.items():
        paid = endless if name in question.dropped else byte * bytes_
        again = name in makers and name not in question.held
        yield name, _node(makers[name]) if again else SINK, paid
    for task in {_node(task): task for task in makers.values()}.values():
        yield _node(task), SINK, work * question.work[_node(task)]
        for source in task.inputs:
            if source in size:
                yield _node(task), source, endless


def _node(task: Task) -> Node:
    """A task in the network; a shortcut has the name of its task, and another body."""
    return task.name, task.body

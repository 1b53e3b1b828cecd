"""A task as a closure over slot numbers: what is left of interpretation in a bound schedule.

A frame is a list with one slot a value. A closure reads its inputs from it, calls the body, stores
the outputs; which body, which slots and which attributes were decided at bind time.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

Frame = list[Any]
Closure = Callable[[Frame], None]
Body = Callable[..., Any]


def run(body: Body, inputs: Sequence[int], outputs: Sequence[int]) -> Closure:
    """Calls the body and stores what it returns; one closure an arity: this is the inner loop."""
    match outputs:
        case [z]:
            return _run_to_one(body, inputs, z)
        case [y, z]:
            return _run_to_two(body, inputs, y, z)
        case _:
            return _run_to_many(body, inputs, outputs)


def _run_to_one(body: Body, inputs: Sequence[int], z: int) -> Closure:
    match inputs:
        case [a]:

            def task(frame: Frame) -> None:
                frame[z] = body(frame[a])

        case [a, b]:

            def task(frame: Frame) -> None:
                frame[z] = body(frame[a], frame[b])

        case [a, b, c]:

            def task(frame: Frame) -> None:
                frame[z] = body(frame[a], frame[b], frame[c])

        case _:
            read = itemgetter(*inputs)

            def task(frame: Frame) -> None:
                frame[z] = body(*read(frame))

    return task


def _run_to_two(body: Body, inputs: Sequence[int], y: int, z: int) -> Closure:
    sources = tuple(inputs)

    def task(frame: Frame) -> None:
        frame[y], frame[z] = body(*[frame[i] for i in sources])

    return task


def _run_to_many(body: Body, inputs: Sequence[int], outputs: Sequence[int]) -> Closure:
    sources, targets = tuple(inputs), tuple(outputs)

    def task(frame: Frame) -> None:
        made = body(*[frame[i] for i in sources])
        for slot, value in zip(targets, made, strict=True):
            frame[slot] = value

    return task


def wait(slot: int) -> Closure:
    """Replaces a handle by the tensor that arrived."""

    def task(frame: Frame) -> None:
        frame[slot] = frame[slot].wait()

    return task


def free(slots: Sequence[int]) -> Closure:
    """Lets go of values."""
    match (*slots,):
        case (a,):

            def task(frame: Frame) -> None:
                frame[a] = None

        case (a, b):

            def task(frame: Frame) -> None:
                frame[a] = frame[b] = None

        case _:
            gone = tuple(slots)

            def task(frame: Frame) -> None:
                for slot in gone:
                    frame[slot] = None

    return task

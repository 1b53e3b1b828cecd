"""A step whose segments are cut in two, so that collectives cross the edge in flight.

The bits must not change: what is posted in one segment and waited for in the next gives what it
gives when both happen in one.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from weft.compose.check import check_edges
from weft.compose.instance import Instance, divided_instance, with_drops
from weft.compose.step import Step
from weft.graph.divide import divide
from weft.graph.program import Program
from weft.schedule.action import Ordered
from weft.schedule.check import check


def cut_step(
    step: Step, cut: Callable[[Program], int], order: Callable[[Program], Ordered]
) -> Step:
    """The step with each template cut before the task at position `cut(program)`."""
    programs: dict[str, Program] = {}
    parts: dict[str, tuple[Program, ...]] = {}
    for name, ordered in step.templates.items():
        program = ordered.program
        later = {task.name for task in program.tasks[cut(program) :]}
        parts[name] = divide(program, later, (name, f"{name}.rest"))
        programs.update({part.name: part for part in parts[name]})
    instances = tuple(_instances(step, parts))
    return replace(
        step,
        templates={name: check(order(program)) for name, program in programs.items()},
        instances=check_edges(with_drops(instances, keep=step.results), programs, step.buckets),
    )


def _instances(step: Step, parts: dict[str, tuple[Program, ...]]) -> Iterator[Instance]:
    for position, instance in enumerate(step.instances):
        yield from divided_instance(instance, parts[instance.template], f"cut {position}")

"""Every rule of a step's sums is broken once by a planted fault, and named."""

from dataclasses import replace

import pytest
from tests.compose.test_first import EVERY, added, step_of

from weft.compose.first import Zeroed, usual_of
from weft.compose.instance import Instance
from weft.compose.step import Step
from weft.compose.sums import check_sums
from weft.errors import ProgramError
from weft.graph.program import Program, Task


def programs_of(step: Step) -> dict:
    return {name: ordered.program for name, ordered in step.templates.items()}


def refused(
    step: Step, *, instances: tuple[Instance, ...] | None = None, zeroed: Zeroed | None = None
) -> str:
    with pytest.raises(ProgramError) as error:
        check_sums(
            instances or step.instances,
            programs_of(step),
            step.buckets,
            zeroed=step.zeroed if zeroed is None else zeroed,
        )
    return str(error.value)


def changed(step: Step, at: int, **fields) -> tuple[Instance, ...]:
    """The instances, one backward with other fields."""
    backwards = [i for i, one in enumerate(step.instances) if _is_backward(one)]
    where = backwards[at]
    return tuple(
        replace(one, **fields) if i == where else one for i, one in enumerate(step.instances)
    )


def _is_backward(instance: Instance) -> bool:
    return usual_of(instance.template) == "moe.backward"


@EVERY
def test_a_step_is_passed_as_it_is(name):
    step = step_of(name)
    found = check_sums(step.instances, programs_of(step), step.buckets, zeroed=step.zeroed)
    assert found is step.instances


@EVERY
def test_the_way_before_is_legal_too(name):
    step = step_of(name)
    adding = {n: o for n, o in step.templates.items() if n == usual_of(n)}
    instances = tuple(replace(i, template=usual_of(i.template)) for i in step.instances)
    made = added(adding, instances, step.buckets)
    if len(adding) < len(step.templates):  # else the templates themselves write
        check_sums(made.instances, programs_of(step), step.buckets, zeroed=made.zeroed)


def test_an_instance_that_adds_first_is_refused():
    """Sabotage: to what the last step left."""
    step = step_of("one rank")
    message = refused(step, instances=changed(step, 0, template="moe.backward"))
    assert "expert_down.wgrad adds to grad:layers.1.down" in message
    assert "the last step's values are left; zero it before the step, or write it first" in message


def test_an_instance_that_writes_second_is_refused():
    """Sabotage: over the sum of the first micro-batch."""
    step = step_of("one rank")
    message = refused(step, instances=changed(step, 2, template="moe.backward@first"))
    assert "writes over grad:layers.1.down, where a sum of grad:layers.1.down is under" in message


def test_a_sum_that_was_zeroed_may_be_written_all_the_same():
    step = step_of("one rank")
    everything = added({}, (), step.buckets).zeroed
    check_sums(step.instances, programs_of(step), step.buckets, zeroed=everything)


@pytest.mark.parametrize("memory", ["embed.dense", "layers.0.dense", "head.dense"])
def test_what_is_neither_zeroed_nor_written_is_refused(memory):
    step = step_of("one rank")
    message = refused(step, zeroed={**step.zeroed, memory: ()})
    assert f"grad:{memory.removesuffix('.dense')}" in message
    assert "the last step's values are left" in message


def test_a_padding_that_is_not_zeroed_is_refused():
    """No task adds to it, but it is summed with its bucket."""
    step = step_of("one rank")
    bucket = next(b for b in step.buckets if b.name == "layers.0.dense")
    last = max(bucket.buffer.slots, key=lambda slot: slot.start)
    stop = last.start + last.parameter.numel
    if stop == bucket.buffer.numel:
        stop -= 1
        expected = "grad:layers.0."
    else:
        expected = "sums gradients:layers.0.dense"
    assert expected in refused(step, zeroed={**step.zeroed, "layers.0.dense": (range(stop),)})


def test_a_bucket_that_is_summed_before_it_is_complete_is_refused():
    step = step_of("one rank")
    at = next(i for i, one in enumerate(step.instances) if "gradients:layers.1.edp" in _keys(one))
    early = next(i for i, one in enumerate(step.instances) if _is_backward(one))
    moved = [one for i, one in enumerate(step.instances) if i != at]
    moved.insert(early + 1, step.instances[at])
    message = refused(step, instances=tuple(moved))
    assert "adds to grad:layers.1.down, where a sum is taken" in message


def test_gradients_that_take_turns_in_one_memory_do_not_meet():
    """Sabotage: of three layers in two memories the third begins before the first is summed."""
    step = step_of("sums sharded", layers=3)
    without = tuple(one for one in step.instances if "gradients:layers.2.edp" not in _keys(one))
    message = refused(step, instances=without)
    assert "where a sum of grad:layers.2." in message


def clearing(step: Step) -> tuple[str, Program, Task]:
    """The reduction of a layer's dense gradients, which clears them, and the task that does."""
    template = next(i.template for i in step.instances if "gradients:layers.1.dense" in _keys(i))
    program = step.templates[template].program
    return template, program, next(t for t in program.tasks if t.body == "clear_grad")


def with_tasks(step: Step, name: str, tasks: tuple[Task, ...]) -> Step:
    ordered = step.templates[name]
    changed = replace(ordered, program=replace(ordered.program, tasks=tasks))
    return replace(step, templates={**step.templates, name: changed})


def test_a_gradient_that_is_cleared_before_it_is_summed_is_refused():
    step = step_of("sums sharded")
    name, program, clear = clearing(step)
    others = tuple(task for task in program.tasks if task is not clear)
    message = refused(with_tasks(step, name, (clear, *others)))
    assert "clear_grad clears gradients:layers.1.dense, where a sum of grad:" in message


def test_a_gradient_that_is_not_cleared_and_added_to_is_refused():
    """Sabotage: the first micro-batch would be counted again."""
    step = step_of("sums sharded")
    name, program, clear = clearing(step)
    message = refused(with_tasks(step, name, tuple(t for t in program.tasks if t is not clear)))
    assert "adds to grad:layers.1." in message
    assert "where a sum is taken" in message


def _keys(instance: Instance) -> set[str]:
    return set(instance.statics.values())

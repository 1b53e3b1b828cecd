"""Every order that is timed is one of the program that its step runs."""

from functools import cache

import bench_schedule as bench
import pytest
import torch
from measurement import TINY

from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.errors import VerificationError
from weft.planner.cost import pricing, rates
from weft.planner.machine import machine
from weft.schedule.action import Post, Wait


@pytest.fixture(scope="module")
def steps():
    made = plan(bench.recipe("Q", 2, (*TINY, "model.layers=2")), 0)
    return dict(bench.variants(made, pricing(rates(machine("H200")))))


def test_every_variant_orders_the_programs_of_its_own_step(steps) -> None:
    made = cache(training_step)  # some variants are of one plan
    for name, step in steps.items():
        own = made(step.plan)
        for template, ordered in step.templates.items():
            theirs = own.templates[template].program
            assert work_of(ordered.program) == work_of(theirs), f"{name}: {template}"


def work_of(program):
    """What a program is but for the order in which it is written."""
    return {str(task) for task in program.tasks}, program.inputs, program.outputs, program.joins


def test_what_is_switched_off_is_waited_for_where_it_is_posted(steps) -> None:
    hidden = {
        name: {
            label
            for ordered in step.templates.values()
            for post, after in zip(ordered.actions, ordered.actions[1:], strict=False)
            if isinstance(post, Post) and not (isinstance(after, Wait) and after.task is post.task)
            for label in (post.task.attributes["label"],)
        }
        for name, step in steps.items()
    }
    for name, labels in bench.PAYLOADS.items():
        assert not hidden[f"auto less {name}"] & labels
    assert hidden["auto"] & bench.PAYLOADS["dispatch"]  # else the switch shows nothing


def test_a_variant_that_computes_something_else_is_refused() -> None:
    class Bound:
        def __init__(self, *sums):
            self.sums = iter(sums)

        def run(self, _environment):
            return {"stats": next(self.sums)}

    class Fake:
        def __init__(self, *sums):
            self.stage = self
            self.bound = Bound(*sums)

        def environment(self):
            return {}

    same, other = torch.arange(8.0), torch.arange(8.0) + 1e-6
    bench.agree({"serial": Fake(same), "auto": Fake(same)})
    with pytest.raises(VerificationError, match="auto: loss .* expected the bits of serial"):
        bench.agree({"serial": Fake(same), "auto": Fake(other)})

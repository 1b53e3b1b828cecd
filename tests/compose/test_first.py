"""The first gradient of a step is written, whatever the step's instances are made of."""

from collections import Counter
from dataclasses import replace

import pytest

from weft.compose.first import Begun, begun, first_of, usual_of
from weft.compose.plan import Crossings
from weft.compose.step import Step, training_step
from weft.graph.opset import FIRST
from weft.graph.program import Program
from weft.parallel.layout import Layout
from weft.parallel.sync import Sync
from weft.schedule.action import Ordered
from weft.schedule.check import check
from weft.testing import models

STEPS = {
    "one rank": {},
    "one micro-batch": {"layout": Layout(dp=4)},
    "experts spread": {"layout": Layout(dp=2, sp=2, ep=4)},
    "across": {"layout": Layout(sp=2, ep=2), "across": True},
    "merged": {"merge": True},
    "1f1b": {"layout": Layout(pp=2)},
    "interleaved": {"layout": Layout(pp=2, pipeline="interleaved", chunks=2), "layers": 4},
    "zero bubble": {"layout": Layout(pp=2, pipeline="zero_bubble")},
    "sums sharded": {"layout": Layout(dp=2), "sync": Sync(zero=2)},
    "small buckets": {"layout": Layout(dp=2), "sync": Sync(bucket=512)},
    "sharded and small": {"layout": Layout(dp=2), "sync": Sync(zero=2, bucket=512)},
    "fused": {"fused": ("permute_up.wgrad", "down_gather.wgrad")},
    "biases": {"family": "gpt_oss"},
    "in chunks": {"layout": Layout(sp=2, ep=2), "split": ("dispatch", "combine", "dispatch_grad")},
    "eight bits": {"layout": Layout(sp=2, ep=2), "crossings": Crossings(combine="fp8")},
}
EVERY = pytest.mark.parametrize("name", STEPS)


def step_of(name: str, **more) -> Step:
    fields = {**STEPS[name], **more}
    model = {**models.FAMILIES, **models.VARIANTS}[fields.pop("family", "mixtral")]
    layers, layout = fields.pop("layers", model.shape.layers), fields.pop("layout", Layout())
    return training_step(replace(models.plan(model.with_shape(layers=layers), layout), **fields))


def added(templates, instances, buckets) -> Begun:
    """The way before: every gradient is zeroed and added to."""
    memories = {bucket.buffer.memory: bucket.buffer.numel for bucket in buckets}
    return Begun(
        templates=templates,
        instances=tuple(instances),
        zeroed={memory: (range(numel),) for memory, numel in memories.items()},
    )


def phases(program: Program) -> dict[str, str]:
    """By which phase each gradient of experts that enters a program is met first."""
    found: dict[str, str] = {}
    for task in program.tasks:
        for value in task.inputs:
            if task.is_wgrad and value.startswith("acc.") and value.endswith((".up", ".down")):
                found.setdefault(value, task.phase)
    return found


def met(step: Step) -> list[tuple[str, str]]:
    """Every gradient of experts in the order of the step, and the phase that meets it."""
    return [
        (instance.statics[value], phase)
        for instance in step.instances
        for value, phase in phases(step.templates[instance.template].program).items()
    ]


@EVERY
def test_each_gradient_of_experts_is_written_by_the_first_that_meets_it(name):
    step = step_of(name)
    seen: Counter[str] = Counter()
    each = step.plan.sync.zero > 1  # those of each micro-batch are summed apart
    for key, phase in met(step):
        assert phase == (FIRST if each or not seen[key] else "wgrad"), key
        seen[key] += 1
    experts = {f"grad:{p.name}" for p in step.parameters if p.name.endswith((".up", ".down"))}
    assert seen.keys() == experts
    assert set(seen.values()) == {step.plan.local_micro_batches}


@EVERY
def test_what_is_written_is_not_zeroed_and_all_else_is(name):
    step = step_of(name)
    written = {key for key, _ in met(step)}
    for buffer in {bucket.buffer.name: bucket.buffer for bucket in step.buckets}.values():
        zeroed = {i for r in step.zeroed[buffer.memory] for i in r}
        own: set[int] = set()
        for slot in buffer.slots:
            if f"grad:{slot.parameter.name}" in written:
                own |= set(range(slot.start, slot.start + slot.parameter.numel))
        assert zeroed == set(range(buffer.numel)) - own


@EVERY
def test_the_order_of_a_template_is_that_of_the_one_that_adds(name):
    step = step_of(name)
    for title, ordered in step.templates.items():
        if title == usual_of(title):
            continue
        adding = step.templates[usual_of(title)]
        assert [type(a) for a in ordered.actions] == [type(a) for a in adding.actions]
        assert [t.name for t in ordered.program.tasks] == [t.name for t in adding.program.tasks]
        assert ordered.program.name == title
        assert check(ordered) is ordered


def test_a_step_of_one_micro_batch_has_no_template_besides():
    step = step_of("one micro-batch")
    assert all(name == usual_of(name) for name in step.templates)
    assert set(phases(step.templates["moe.backward"].program).values()) == {FIRST}


def test_the_first_micro_batch_has_a_template_of_its_own_where_there_are_more():
    step = step_of("one rank")
    assert first_of("moe.backward", step.templates) == "moe.backward@first"
    assert first_of("moe.forward", step.templates) == "moe.forward"
    backwards = [i.template for i in step.instances if usual_of(i.template) == "moe.backward"]
    assert backwards == ["moe.backward@first"] * 2 + ["moe.backward"] * 6


@pytest.mark.parametrize(("name", "clears"), [("sums sharded", False), ("biases", True)])
def test_a_reduction_clears_no_bucket_that_is_written_whole(name, clears):
    """ZeRO-2: each micro-batch writes gradients of experts, and adds those of biases to zeros."""
    step = step_of(name, sync=Sync(zero=2), layout=Layout(dp=2))
    bodies: dict[str, set[str]] = {}
    for instance in step.instances:
        key = instance.statics.get("acc.bucket", "")
        program = step.templates[instance.template].program
        bodies.setdefault(key, set()).update(task.body for task in program.tasks)
        assert set(instance.writes) <= {*program.outputs, *program.kept}
    assert ("clear_grad" in bodies["gradients:layers.0.edp"]) is clears
    assert "clear_grad" in bodies["gradients:layers.0.dense"]


def test_a_step_that_is_not_begun_has_the_templates_it_came_with():
    """An instance that meets a sum under way adds all of its gradients."""
    step = step_of("one rank")
    templates = {n: o for n, o in step.templates.items() if n == usual_of(n)}
    instances = [replace(i, template=usual_of(i.template)) for i in step.instances]
    backward = next(i for i in instances if i.template == "moe.backward")
    one = replace(backward, template="half", statics={"acc.w.up": backward.statics["acc.w.up"]})
    half = Ordered(
        program=Program(name="half", values={}, inputs=("acc.w.up",), outputs=(), tasks=()),
        actions=(),
    )
    made = begun({**templates, "half": half}, [one, *instances], step.buckets)
    first, second, *_ = (i for i in made.instances if usual_of(i.template) == "moe.backward")
    assert first.template == "moe.backward"
    assert second.template == "moe.backward@first"

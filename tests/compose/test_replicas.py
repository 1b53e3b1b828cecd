"""Reductions stand where gradients are complete, in flight under what comes next."""

from dataclasses import replace

import pytest

from weft.compose.step import Step, training_step
from weft.parallel.layout import Layout
from weft.parallel.sync import Sync, Wire
from weft.parallel.zero import gradient_elements
from weft.testing import models

LAYOUT = Layout(dp=2)  # two micro-batches a rank


def step_of(
    sync: Sync, *, layout: Layout = LAYOUT, order: str = "overlapped", layers: int = 4
) -> Step:
    model = models.mixtral_like().with_shape(layers=layers)
    plan = models.plan(model, layout, order=order, precision="float32")
    return training_step(replace(plan, sync=sync))


def places(step: Step, prefix: str) -> list[int]:
    return [i for i, x in enumerate(step.instances) if x.template.startswith(prefix)]


def buckets_of(step: Step) -> list[str]:
    """Whose gradient each reduction begins with, in order."""
    whole = (x.statics.get("acc.bucket") for x in step.instances if x.template.endswith(".0"))
    return [key.removeprefix("gradients:") for key in whole if key]


def test_a_bucket_is_reduced_behind_the_last_backward_of_its_layer_and_no_earlier():
    step = step_of(Sync())
    backwards, reductions = places(step, "moe.backward"), places(step, "reduce.")
    assert min(reductions) > backwards[3], "not in the first micro-batch"
    assert min(reductions) < backwards[4], "the head's under the first backward of the last one"
    assert buckets_of(step)[:3] == ["head.dense", "layers.3.dense", "layers.3.edp"]
    assert buckets_of(step)[-1] == "embed.dense"


def test_shards_are_added_to_in_every_micro_batch():
    step = step_of(Sync(zero=2))
    assert buckets_of(step) == 2 * buckets_of(step_of(Sync()))


def test_a_reduction_is_in_flight_under_a_whole_backward():
    step = step_of(Sync(gradients=Wire.BF16))
    posted = {
        x.statics["acc.bucket"]: i
        for i, x in enumerate(step.instances)
        if x.template.startswith("reduce.") and x.template.endswith(".0")
    }
    joined = {
        x.statics["acc.bucket"]: i
        for i, x in enumerate(step.instances)
        if x.template.startswith("reduce.") and x.template.endswith(".1")
    }
    under = [i for i in places(step, "moe.backward") if i > posted["gradients:head.dense"]]
    for layer, between in zip((3, 2, 1), under[1:], strict=True):
        key = f"gradients:layers.{layer}.edp"
        assert posted[key] < between < joined[key]


def test_the_wire_between_nodes_is_busy_beside_the_one_inside():
    """Between two backwards one bucket has crossed its node and another is posted inside it."""
    step = step_of(Sync(), layout=Layout(dp=4, node=2))
    names = [x.template for x in step.instances]
    first = next(i for i, name in enumerate(names) if name.endswith(".1"))
    beside = names[first : first + 3]
    axes = [
        task.group
        for name in beside
        for task in step.templates[name].program.tasks
        if task.body == "reduce_scatter_grad"
    ]
    assert axes == ["dense_inter", "dense_intra", "edp_intra"]


@pytest.mark.parametrize(("order", "wire"), [("serial", Wire.FP32), ("overlapped", Wire.BF16_RING)])
def test_a_serial_reduction_and_a_ring_are_one_segment(order, wire):
    step = step_of(Sync(gradients=wire), order=order)
    programs = [o.program for n, o in step.templates.items() if n.startswith("reduce.")]
    assert not any(program.opens or program.joins for program in programs)


def test_gradients_of_layers_take_turns_in_the_memory_of_two():
    one, two = step_of(Sync()), step_of(Sync(zero=2))
    memories = {bucket.buffer.memory for bucket in two.buckets}
    assert len(memories) == 2 + 2 + 2  # embedding and head; two dense; two of experts
    whole = sum(bucket.numel for bucket in one.buckets)
    layer = sum(b.numel for b in two.buckets if b.name.startswith("layers.0."))
    assert gradient_elements(one.buckets, zero=1) == whole
    assert gradient_elements(two.buckets, zero=2) == whole - 2 * layer + whole // 2


def test_one_layer_less_than_memories_has_its_own():
    step = step_of(Sync(zero=2), layers=1)
    assert len({b.buffer.memory for b in step.buckets}) == len(step.buckets)

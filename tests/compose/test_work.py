from dataclasses import replace

from weft.compose.stage import chunks_of
from weft.compose.templates import training_programs
from weft.compose.work import Parts, instances_of
from weft.parallel.layout import Layout
from weft.schedule.pipeline import Pass, Work
from weft.testing import models

PLAN = models.plan(models.mixtral_like(), Layout())


def templates(kind: Pass, plan=PLAN) -> list[str]:
    parts = Parts(shape=plan.shape, programs=training_programs(plan), chunks=chunks_of(plan))
    return [i.template for i in instances_of(parts, Work(kind, 0, 0))]


def test_a_backward_walks_the_forward_from_its_end():
    assert templates(Pass.FORWARD) == ["embedding.forward", "moe.forward", "moe.forward"]
    assert templates(Pass.BACKWARD) == [
        "head",
        "moe.backward",
        "moe.backward",
        "embedding.backward",
    ]


def test_weights_that_are_put_off_come_in_the_same_order():
    plan = replace(PLAN, layout=Layout(pipeline="zero_bubble"))
    assert templates(Pass.BACKWARD, plan) == ["head", "moe.backward", "moe.backward"]
    assert templates(Pass.WEIGHT, plan) == ["moe.weights", "moe.weights", "embedding.backward"]


def test_a_later_stage_has_the_rotary_table_and_no_embedding():
    plan = replace(PLAN, layout=Layout(pp=2), rank=1)
    assert templates(Pass.FORWARD, plan) == ["positions", "moe.forward"]

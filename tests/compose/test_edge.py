"""The edges of a pipeline's ranks as templates: who sends what to whom, on which link, when."""

from collections import Counter

import pytest

from weft.compose.step import Step, evaluation_step, training_step
from weft.parallel.layout import Layout
from weft.schedule.action import Join, Post
from weft.testing import models

MODEL = models.mixtral_like().with_shape(layers=4)


def step_of(rank: int, *, pp: int = 2, order: str = "1f1b", chunks: int = 1) -> Step:
    layout = Layout(pp=pp, pipeline=order, chunks=chunks)
    return training_step(models.plan(MODEL, layout, rank))


def counts(step: Step) -> Counter[str]:
    return Counter(i.template for i in step.instances)


@pytest.mark.parametrize("pp", [2, 4])
def test_each_stage_receives_and_sends_what_its_place_asks_for(pp):
    m = models.MICRO_BATCHES
    for rank in range(pp):
        found = counts(step_of(rank, pp=pp))
        before, behind = m * (rank > 0), m * (rank < pp - 1)
        assert (found["receive.forward"], found["send.backward"]) == (before, before)
        assert (found["send.forward"], found["receive.backward"]) == (behind, behind)
        assert found["arrive"] == found["sent"] == before + behind


def test_layers_do_not_know_their_place():
    first, second = (step_of(rank).templates for rank in range(2))
    for name in ("moe.forward", "moe.backward"):
        assert first[name] == second[name]


def test_what_a_stage_posts_it_leaves_open_and_what_arrives_it_joins():
    templates = step_of(1).templates
    (post,) = (a for a in templates["receive.forward"].actions if isinstance(a, Post))
    assert templates["receive.forward"].program.opens == post.task.outputs
    assert templates["arrive"].actions == (Join("x"),)


def test_a_receive_is_posted_before_the_work_that_comes_before_its_own():
    order = [i.template for i in step_of(1).instances]
    second = [at for at, name in enumerate(order) if name == "receive.forward"][1]
    assert order.index("moe.forward") < second < order.index("head"), "it hides under a backward"


def test_directions_and_the_way_round_have_links_of_their_own():
    channels = set()
    for rank in range(2):
        step = step_of(rank, order="interleaved", chunks=2)
        for ordered in step.templates.values():
            tasks = (t for t in ordered.program.tasks if "peer" in t.attributes)
            channels |= {task.channel for task in tasks}
    assert channels == {
        f"pp/{link} {verb}"
        for link in ("forward", "backward", "forward_wrap", "backward_wrap")
        for verb in ("send", "receive")
    }


def test_an_evaluation_has_no_backward_messages():
    plan = models.plan(MODEL, Layout(pp=2), 1)
    found = counts(evaluation_step(plan))
    assert found["receive.forward"] == 1
    assert "send.backward" not in found

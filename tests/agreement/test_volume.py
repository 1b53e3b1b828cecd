"""What travels, for 2, 4 and 8 ranks and every strategy: foreseen, by the formula, and counted."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from weft.compose.volume import volumes
from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout
from weft.testing import crew
from weft.testing.crew import Course, Trial, plan_of, stacked_crew
from weft.testing.matrix.model import recipe
from weft.testing.wire import evenly, forward_payload, predict, predicted_forward
from weft.trainer.feed import open_feed

STRATEGIES = (
    *({"attention": kind} for kind in Attention),
    *({"dispatch": way} for way in Dispatch),
    {"ffn": FeedForward.TP},
    {"attention": Attention.TP, "ffn": FeedForward.TP},
)


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    folder: Path = tmp_path_factory.mktemp("volume")
    config = recipe(folder, "moe", "model.layers=2", "data.sequence=64")
    return Course(config=config, feed=open_feed(config))


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: " ".join(map(str, s.values())))
def test_what_is_counted_was_foreseen_and_is_the_formula(
    course: Course, strategy: dict, n: int
) -> None:
    sliced = strategy.get("ffn") is FeedForward.TP
    layout = Layout(sp=n, ep=1 if sliced else n, **strategy)
    model = course.config.model
    tokens = course.config.train.micro_batch * course.config.data.sequence
    even = evenly(tokens, model.experts, model.top_k, layout)
    trial = Trial(steps=1, precision="bfloat16", routing=lambda *_: even, drops=False)
    for rank, ran in enumerate(crew.run(stacked_crew(layout), course, trial)):
        assert ran.received == predict(ran.step, lambda *_: even), rank
        for labels, elements in forward_payload(ran.step.plan).items():
            assert predicted_forward(ran.step, lambda *_: even, labels) == elements, labels
    plan = plan_of(course, replace(trial, order="serial"), layout, 0)
    halves = list(volumes(plan))
    assert Counter(line.volume.operator for line in halves) == {"attention": 1, "experts": 1}
    for line in halves:
        # a program is priced at the ranks that a token reaches on average, which are less than k
        average = layout.dispatch is Dispatch.DEDUPLICATED and line.volume.operator == "experts"
        assert line.counted_bytes <= line.derived_bytes
        assert average or line.counted_bytes == line.derived_bytes

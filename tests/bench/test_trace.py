"""A traced step has every task of the schedule, each on its lane, none outside its segment."""

import itertools
from collections import Counter

import pytest
import torch
from tests.system.conftest import corpus, recipe

from weft.bench.rig import rigged
from weft.bench.trace import Recorder, trace_here, trace_step
from weft.comm.handle import Handle
from weft.config.run import RunConfig
from weft.schedule.action import Post, Run
from weft.telemetry.trace import COMPUTE, SEGMENT, Span
from weft.trainer.session import Place

__all__ = ["corpus", "recipe"]

CPU = torch.device("cpu")
ALONE = Place(rank=0, world=1, device=CPU, meeting=None)


@pytest.fixture
def config(recipe) -> RunConfig:
    return recipe("run")


def test_every_task_of_the_step_is_there_once(config: RunConfig) -> None:
    with rigged(config, ALONE) as rig:
        spans = trace_step(rig, steps=2)
        step = rig.stage.step
    ordered = [step.templates[instance.template] for instance in step.instances]
    ran = [a.task for o in ordered for a in o.actions if isinstance(a, Run)]
    posted = [a.task for o in ordered for a in o.actions if isinstance(a, Post)]
    lanes = Counter(span.lane for span in spans)
    assert lanes[SEGMENT] == len(step.instances)
    assert lanes[COMPUTE] == len(ran) + len(posted)  # each collective has its wait
    assert sum(n for lane, n in lanes.items() if lane.startswith("comm")) == len(posted)
    inside_segments(spans)


def inside_segments(spans: list[Span]) -> None:
    """Nothing computes outside the segment that it names, and lanes do one thing at a time."""
    for rank in {span.rank for span in spans}:
        mine = [span for span in spans if span.rank == rank]
        segments = [span for span in mine if span.lane == SEGMENT]
        for span in mine:
            assert span.start <= span.stop
            if span.lane == COMPUTE:
                assert any(
                    s.name == span.detail["segment"]
                    and s.start <= span.start <= span.stop <= s.stop
                    for s in segments
                )
        for lane in {span.lane for span in mine}:
            row = sorted((s.start, s.stop) for s in mine if s.lane == lane)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(row)), lane


def test_ranks_of_a_layout_are_traced_on_one_clock(recipe) -> None:
    spans = trace_here(recipe("run", "parallel.sp=2", "parallel.ep=2"), steps=1)
    assert {span.rank for span in spans} == {0, 1}
    assert {"comm sp", "comm ep", COMPUTE, SEGMENT} <= {span.lane for span in spans}
    inside_segments(spans)
    first, second = ([s for s in spans if s.rank == rank and s.lane == SEGMENT] for rank in (0, 1))
    assert max(first[0].start, second[0].start) < min(first[-1].stop, second[-1].stop)


def test_a_collective_lasts_until_it_is_seen_complete() -> None:
    class Slow(Handle):
        left = 2

        def ready(self) -> bool:
            self.left -= 1
            return self.left < 0

        def wait(self) -> torch.Tensor:
            return torch.zeros(1)

    recorder = Recorder(CPU)
    post = recorder.bodies({"all_to_all": lambda *_, **__: Slow(), "add": lambda: None})
    post["all_to_all"](axis="sp", label="qkv")
    for _ in range(4):
        post["add"]()
    wire, *adds = recorder.spans(rank=3)
    assert (wire.lane, wire.name, wire.rank) == ("comm sp", "all_to_all qkv", 3)
    assert adds[1].stop <= wire.stop <= adds[2].start

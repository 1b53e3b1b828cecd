from dataclasses import replace
from itertools import pairwise

import pytest

from weft.errors import ConfigError
from weft.parallel.layout import Layout
from weft.planner.cost import rates
from weft.planner.machine import machine
from weft.planner.play import COMPUTE
from weft.planner.simulate import Job, Simulated, Studio
from weft.planner.trace import read_trace, spans
from weft.telemetry.trace import SEGMENT, write_trace
from weft.testing import models


def simulated() -> Simulated:
    made = models.plan(
        models.large_mixtral(), Layout(pp=2, sp=2, ep=2, layers=(1, 1)), precision="bfloat16"
    )
    plan = replace(made, order="overlapped", sequence=4096)
    return Studio().simulate(Job(plan=plan), rates(machine("H800")))


DONE = simulated()
SPANS = list(spans(DONE))


def test_a_trace_has_a_row_for_each_stage_and_lane():
    assert {span.rank for span in SPANS} == {0, 1}
    assert {COMPUTE, SEGMENT, "comm sp", "comm ep"} <= {span.lane for span in SPANS}


def test_a_trace_ends_with_the_pipeline_and_starts_at_zero():
    assert min(span.start for span in SPANS) == 0.0
    assert max(span.stop for span in SPANS) == pytest.approx(DONE.run.seconds)


def test_compute_does_one_thing_at_a_time():
    for rank in (0, 1):
        mine = sorted((s.start, s.stop) for s in SPANS if s.rank == rank and s.lane == COMPUTE)
        assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(mine))


def test_segments_hold_what_runs_in_them():
    boxes = [(s.rank, s.start, s.stop) for s in SPANS if s.lane == SEGMENT]
    for span in (s for s in SPANS if s.lane == COMPUTE):
        assert any(
            r == span.rank and a - 1e-9 <= span.start and span.stop <= b + 1e-9 for r, a, b in boxes
        )


def test_a_written_trace_is_read_back_and_another_file_refused(tmp_path):
    write_trace(tmp_path / "step.json", SPANS, {})
    again = read_trace(tmp_path / "step.json")
    assert [(s.rank, s.lane, s.name) for s in again] == [(s.rank, s.lane, s.name) for s in SPANS]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ConfigError, match="weft trace"):
        read_trace(tmp_path / "other.json")

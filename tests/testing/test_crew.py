"""Ranks run alike wherever they live, and what is written down is what happened."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from weft.parallel.layout import Layout
from weft.testing.crew import (
    Course,
    Run,
    Trial,
    gloo_crew,
    own_micro_batches,
    plan_of,
    run,
    stacked_crew,
)
from weft.testing.ranks import run_ranks
from weft.testing.routing import balanced

TWO = Layout(sp=2, ep=2)
TRIAL = Trial(steps=2, precision="float32")


def plain(one: Run) -> list[object]:
    pieces = [[p.name, p.start, p.stop, p.values] for p in one.gradients]
    return [one.sums, dict(one.start), dict(one.end), dict(one.received), pieces]


def over_gloo(rank: int, course: Course) -> list[object]:
    crew = gloo_crew(TWO, rank, timeout_seconds=60)
    try:
        return plain(run(crew, course, TRIAL)[0])
    finally:
        for transport in crew.transports:
            transport.close()


def test_ranks_over_gloo_and_stacked_ranks_give_the_same_bits(course: Course) -> None:
    stacked = [plain(one) for one in run(stacked_crew(TWO), course, TRIAL)]
    for ours, theirs in zip(run_ranks(2, over_gloo, course), stacked, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4]
        assert all(
            a[:3] == b[:3] and torch.equal(a[3], b[3])
            for a, b in zip(ours[4], theirs[4], strict=True)
        )


def test_every_gradient_element_is_owned_once(course: Course) -> None:
    covered: dict[str, set[int]] = {}
    for one in run(stacked_crew(TWO), course, TRIAL):
        for piece in one.gradients:
            place = range(piece.start, piece.stop)
            assert covered.setdefault(piece.name, set()).isdisjoint(place)
            covered[piece.name].update(place)
    (alone,) = run(stacked_crew(Layout()), course, TRIAL)
    assert {p.name: p.stop for p in alone.gradients} == {n: len(c) for n, c in covered.items()}


def test_gradients_are_those_before_clipping(course: Course) -> None:
    (alone,) = run(stacked_crew(Layout()), course, Trial(steps=1, precision="float64"))
    norm2 = sum(float(piece.values.square().sum()) for piece in alone.gradients)
    assert norm2 == pytest.approx(float(alone.sums[0, 3]), rel=1e-12)
    assert norm2 > 1.0  # the recipe clips at 1: the moments alone would be smaller


def test_forced_experts_are_the_ones_chosen(course: Course) -> None:
    def routing(step: int, micro_batch: int, layer: int) -> np.ndarray:
        return balanced(64, 8, 2, 100 * step + 10 * micro_batch + layer)

    trial = Trial(steps=2, precision="float32", routing=routing)
    for rank, one in enumerate(run(stacked_crew(TWO), course, trial)):
        half = slice(32 * rank, 32 * rank + 32)
        for place, chosen in one.choices.items():
            assert np.array_equal(chosen.numpy(), routing(*place)[half])


def test_data_parallel_ranks_share_out_the_micro_batches(course: Course) -> None:
    plans = [plan_of(course, TRIAL, Layout(dp=2, sp=2), rank) for rank in range(4)]
    assert [list(own_micro_batches(p)) for p in plans] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_the_serial_step_is_in_chunks_where_the_others_are_and_has_nothing_else(
    course: Course,
) -> None:
    serial = replace(TRIAL, order="serial")
    for overlap in ({"across": True}, {"across": True, "split": ("qkv",), "chunks": 4}):
        config = course.config.model_copy(
            update={"overlap": course.config.overlap.model_copy(update=overlap)}
        )
        asked = replace(course, config=config)
        plan, other = (plan_of(asked, trial, Layout(sp=2), 0) for trial in (serial, TRIAL))
        assert (plan.order, plan.across, other.across) == ("serial", False, True)
        assert (plan.split, plan.chunks) == (other.split, other.chunks)


def test_a_digest_knows_one_changed_bit(course: Course) -> None:
    def nudge(stage, by: float) -> None:
        stage.state.statics["param:norm"][0] += by

    starts = []
    for by in (0.0, 2**-23):
        sabotage = type(course.sabotage)(start=partial(nudge, by=by))
        tampered = Course(config=course.config, feed=course.feed, sabotage=sabotage)
        starts.append(run(stacked_crew(Layout()), tampered, TRIAL)[0].start)
    assert {name for name in starts[0] if starts[0][name] != starts[1][name]} == {"norm"}

"""Each fault does the one thing that it says, on one rank, and nothing on the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weft.comm.mesh import Mesh
from weft.comm.transports.stacked import StackedWorld
from weft.ops import fp8
from weft.ops.registry import reference_bodies
from weft.ops.rows import Splits
from weft.parallel.layout import Layout
from weft.testing import crew
from weft.testing.crew import Course, Trial, stacked_crew
from weft.testing.sabotage import CULPRIT, SABOTAGES, Unsummed, join, scale_twice, shift_order

TWO = Layout(sp=2, ep=2)
STEP = Trial(steps=1, precision="float64")


# Faults that layouts of two sequence-parallel ranks do not have.
ELSEWHERE = {"nodes": Layout(dp=4, node=2), "balance": Layout(dp=2)}


def runs(course: Course, fault: str) -> tuple[crew.Run, ...]:
    layout = ELSEWHERE.get(fault, TWO)
    return crew.run(stacked_crew(layout), replace(course, sabotage=SABOTAGES[fault]), STEP)


def test_a_dropped_sum_is_the_second_of_gradients_and_only_that() -> None:
    world = StackedWorld(Mesh(dp=2))
    ends = [world.transport(0), Unsummed(world.transport(1))]
    results = []
    for label in ("other", "gradients", "gradients", "gradients"):
        handles = [
            end.reduce_scatter(torch.arange(4.0) + rank, axis="dense", label=label)
            for rank, end in enumerate(ends)
        ]
        results.append([handle.wait().tolist() for handle in handles])
    summed = [[1.0, 3.0], [5.0, 7.0]]
    assert results == [summed, summed, [[1.0, 3.0], [3.0, 4.0]], summed]


def test_two_experts_of_one_rank_trade_places(course: Course) -> None:
    honest, swapped = runs_of_start(course), runs(course, "experts")
    assert swapped[0].start == honest[0].start
    changed = {name for name in honest[1].start if honest[1].start[name] != swapped[1].start[name]}
    assert changed == {
        f"layers.0.experts.{e}.{part}" for e in (4, 5) for part in ("gate", "up", "down")
    }
    first, second = "layers.0.experts.4.up", "layers.0.experts.5.up"
    assert swapped[1].start[first] == honest[1].start[second]


def runs_of_start(course: Course) -> tuple[crew.Run, ...]:
    return crew.run(stacked_crew(TWO), course, STEP)


def test_the_batches_of_one_rank_start_one_sample_late(course: Course) -> None:
    load = shift_order(course.feed, course.config)
    trial = STEP
    plan = crew.plan_of(course, trial, Layout(dp=2), CULPRIT)
    size, length = plan.micro_batch, plan.sequence
    honest, late = course.feed.load(plan, 3, torch.device("cpu")), load(plan, 3)
    assert len(honest) == len(late)
    tokens = torch.cat([batch.tokens for batch in honest])
    shifted = torch.cat([batch.tokens for batch in late])
    assert torch.equal(shifted[:-length], tokens[length:])
    assert [len(batch.tokens) for batch in late] == [size * length] * len(late)
    other = crew.plan_of(course, trial, Layout(dp=2), 0)
    same = zip(course.feed.load(other, 3, torch.device("cpu")), load(other, 3), strict=True)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in same)


def test_joined_samples_are_the_micro_batch_that_holds_them(course: Course) -> None:
    feed, config = course.feed.training, course.config
    assert config.train.micro_batch == 2
    whole = feed.load(2, 1)
    half = config.data.sequence
    parts = [
        replace(
            whole,
            tokens=whole.tokens[place],
            targets=whole.targets[place],
            positions=whole.positions[place],
            ends=tuple(e - place.start for e in whole.ends if place.start < e <= place.stop),
        )
        for place in (slice(0, half), slice(half, 2 * half))
    ]
    joined = join(parts)
    assert np.array_equal(joined.tokens, whole.tokens)
    assert np.array_equal(joined.positions, whole.positions)
    assert joined.ends == whole.ends


@pytest.mark.parametrize("fault", sorted(set(SABOTAGES) - {"scale", "chunks"}))
def test_a_fault_changes_what_is_computed(course: Course, fault: str) -> None:
    (alone,) = crew.run(stacked_crew(Layout()), course, STEP)
    broken = runs(course, fault)
    assert not torch.allclose(broken[0].sums, alone.sums, rtol=1e-6)


def test_scales_are_squared_on_one_rank_wherever_a_packet_is_decoded() -> None:
    x = torch.randn(6, 8, dtype=torch.float64) * 5
    honest = reference_bodies()
    there, here = Splits(send=(2, 4), receive=()), Splits(send=(), receive=(2, 4))
    word = {"dtype": "float64"}
    rows = {"columns": 8, "width": 8, **word}
    equal = {"ranks": 2, "rows": 3, "group": 2, **word}
    ragged = {"reverse": False, "group": 3}
    calls = {
        "decode_rows": (fp8.encode_rows(x, columns=8), rows),
        "decode_row_sums": (fp8.encode_rows(x, columns=8), {**rows, "ranks": 2}),
        "decode_blocks": (fp8.encode_blocks(x, ranks=2, group=2), equal),
        "decode_block_sums": (fp8.encode_blocks(x, ranks=2, group=2), equal),
        "decode_channels": (fp8.encode_channels(x, there, **ragged), here, {**ragged, **word}),
    }
    assert scale_twice(honest, 0) == honest
    bad = scale_twice(honest, CULPRIT)
    for name, (*inputs, attributes) in calls.items():
        assert not torch.allclose(
            bad[name](*inputs, **attributes), honest[name](*inputs, **attributes)
        ), name
    once, two = (b["decode_rows"](calls["decode_rows"][0], **rows) for b in (honest, bad))
    scale = x.abs().amax(1, keepdim=True) / 448
    torch.testing.assert_close(two, once * scale, rtol=1e-6, atol=0)


def test_no_fault_is_no_difference(course: Course) -> None:
    (alone,) = crew.run(stacked_crew(Layout()), course, STEP)
    honest = crew.run(stacked_crew(TWO), course, STEP)
    assert torch.allclose(honest[0].sums, alone.sums, rtol=1e-12)

"""Predicted bytes: by hand where a hand can, by the paper's table, and wrong where the input is."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from weft.compose.plan import Plan
from weft.compose.step import training_step
from weft.parallel.layout import Dispatch, Layout
from weft.testing import models
from weft.testing.routing import skewed
from weft.testing.wire import (
    evenly,
    forward_payload,
    own_choices,
    predict,
    predicted_forward,
    rows_between,
)

FOUR = Layout(dp=2, sp=2, ep=4)


def plan(layout: Layout, rank: int = 0, **changes: object) -> Plan:
    return replace(models.plan(models.mixtral_like(), layout, rank, replay=True), **changes)


def even(layout: Layout):
    chosen = evenly(models.MICRO_BATCH * models.SEQUENCE, 8, 2, layout)
    return lambda *_place: chosen


def ragged(m: int, layer: int):
    return skewed(models.MICRO_BATCH * models.SEQUENCE, 8, 2, 10 * m + layer)


def test_one_rank_receives_nothing() -> None:
    assert predict(training_step(plan(Layout())), ragged) == {}


@pytest.mark.parametrize("layout", [Layout(sp=2, ep=2), Layout(dp=2, ep=2), FOUR])
def test_rows_between_ranks_are_the_choices_of_each_source(layout: Layout) -> None:
    ours = plan(layout, layout.world - 1)
    between = rows_between(ours, ragged, 0, 1)
    for source in range(layout.ep):
        experts = own_choices(ours, layout.world - layout.ep + source, 0, ragged, 1)
        for destination in range(layout.ep):
            first = destination * 8 // layout.ep
            held = (experts >= first) & (experts < first + 8 // layout.ep)
            assert between[source, destination] == held.sum()


def test_the_counts_of_all_to_all_are_what_a_hand_counts() -> None:
    bytes_of = predict(training_step(plan(Layout(sp=2, ep=2))), ragged)
    layers, micro_batches = 2, models.MICRO_BATCHES
    assert bytes_of["ep", "all_to_all", "counts"] == layers * micro_batches * 8 * 8 // 2
    sequences = 2  # of a micro-batch, each with its own load
    assert bytes_of["sp", "all_reduce", "load"] == layers * micro_batches * sequences * 8 * 8


def test_rows_and_their_weights_travel_together() -> None:
    bytes_of = predict(training_step(plan(FOUR, 1)), ragged)
    hidden = models.mixtral_like().shape.hidden
    rows, weights = (bytes_of["ep", "all_to_all_rows", name] for name in ("rows", "weights"))
    assert rows == weights * hidden


def test_dispatch_brings_the_rows_chosen_elsewhere_for_here() -> None:
    step = training_step(plan(FOUR, 2))
    arriving = 0
    for m in range(step.plan.local_micro_batches):
        for layer in range(step.plan.shape.layers):
            between = rows_between(step.plan, ragged, m, layer)
            arriving += int(between[[0, 1, 3], 2].sum())
    assert predicted_forward(step, ragged, ["rows"]) == arriving * step.plan.shape.hidden


@pytest.mark.parametrize("dispatch", Dispatch)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_bytes_do_not_depend_on_what_is_woven_together(dispatch: Dispatch, remat: str) -> None:
    apart = plan(replace(FOUR, dispatch=dispatch), 1, remat=remat)
    expected = predict(training_step(apart), ragged)
    for fields in ({"across": True}, {"merge": True}, {"across": True, "merge": True}):
        assert predict(training_step(replace(apart, **fields)), ragged) == expected


@pytest.mark.parametrize("dispatch", Dispatch)
def test_the_forward_at_even_routing_is_the_formula_of_the_paper(dispatch: Dispatch) -> None:
    layout = Layout(sp=4, dp=2, ep=8, dispatch=dispatch)  # two ranks share each key/value head
    step = training_step(plan(layout))
    expected = forward_payload(step.plan)
    assert len(expected) == 2
    for labels, elements in expected.items():
        assert predicted_forward(step, even(layout), labels) == elements


def test_uneven_routing_is_not_the_formula() -> None:
    step = training_step(plan(FOUR))
    labels = ("rows", "outputs")
    assert predicted_forward(step, ragged, labels) != forward_payload(step.plan)[labels]


def test_volumes_relative_to_tensor_parallelism_are_the_derived_ones() -> None:
    model = models.mixtral_like().with_shape(
        hidden=32, heads=32, kv_heads=8, head_dim=1, top_k=3, layers=1
    )
    ours = replace(
        models.plan(model, Layout(sp=8, ep=8)), micro_batches=1, micro_batch=1, sequence=64
    )
    tensor_parallel = Fraction(2 * 64 * 32 * 7, 8)
    payload = forward_payload(ours)
    assert payload["qkv", "attention"] / tensor_parallel == Fraction(5, 32)  # 0.156
    assert payload["rows", "outputs"] / tensor_parallel == Fraction(3, 8)  # 0.375


def test_even_choices_are_different_experts_and_as_many_on_every_rank() -> None:
    chosen = evenly(12, 6, 4, Layout(sp=3, ep=3))
    assert all(len(set(row)) == 4 for row in chosen.tolist())
    assert np.bincount(chosen.ravel() // 2).tolist() == [16, 16, 16]


def test_a_wider_dtype_moves_more_payload_and_the_same_indices() -> None:
    layout = Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER)
    narrow = predict(training_step(plan(layout, precision="bfloat16")), ragged)
    wide = predict(training_step(plan(layout, precision="float32")), ragged)
    tokens, experts, weights = (("ep", "all_gather", n) for n in ("tokens", "experts", "weights"))
    assert wide[tokens] == 2 * narrow[tokens]
    assert wide[experts] == narrow[experts]
    assert wide[weights] == narrow[weights]  # sums are float32 in both

"""Every legal order gives the same bits: losses, gradients and optimizer state of two steps."""

from collections.abc import Sequence
from functools import partial

import pytest

from weft.compose.step import Order
from weft.data.batches import MicroBatch
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Dispatch, Layout
from weft.schedule.layer import serial, shuffled
from weft.testing import models
from weft.testing.agreement import (
    Batches,
    Trace,
    Work,
    first_difference,
    require_agreement,
    run_layout,
)

SEEDS = range(30)
LAYOUTS = {
    "one rank": Layout(),
    "all_to_all": Layout(sp=2, ep=2),
    "all_gather": Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER),
}
BODIES = reference_bodies()


def run(
    family: str,
    layout: Layout,
    *,
    order: Order | None = None,
    recipe: str = "serial",
    batches: Batches | None = None,
) -> Trace:
    model = models.FAMILIES[family]
    work = Work(batches=batches or partial(models.batches, model), steps=2)
    plan_of = partial(models.plan, model, order=recipe)
    return run_layout(plan_of, layout, work, bodies=BODIES, order=order)


@pytest.fixture(scope="module")
def references() -> dict[tuple[str, str], Trace]:
    return {
        ("deepseek", "one rank"): run("deepseek", LAYOUTS["one rank"], order=serial),
        **{("mixtral", at): run("mixtral", layout, order=serial) for at, layout in LAYOUTS.items()},
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_random_orders_of_one_rank_give_the_same_bits(seed, references):
    found = run("deepseek", LAYOUTS["one rank"], order=partial(shuffled, seed=seed))
    assert first_difference(found, references["deepseek", "one rank"]) is None


@pytest.mark.parametrize("at", LAYOUTS)
@pytest.mark.parametrize("seed", SEEDS[:10])
def test_random_orders_of_a_layout_give_the_same_bits(seed, at, references):
    found = run("mixtral", LAYOUTS[at], order=partial(shuffled, seed=seed))
    assert first_difference(found, references["mixtral", at]) is None


@pytest.mark.parametrize("at", LAYOUTS)
def test_the_overlapped_order_gives_the_bits_of_the_serial_one(at, references):
    found = run("mixtral", LAYOUTS[at], recipe="overlapped")
    assert first_difference(found, references["mixtral", at]) is None


def test_micro_batches_in_another_order_give_other_bits(references):
    """The sabotage control: sums in another order agree up to rounding, and are told apart."""

    def backwards(step: int) -> Sequence[MicroBatch]:
        return models.batches(models.FAMILIES["mixtral"], step)[::-1]

    found = run("mixtral", LAYOUTS["one rank"], batches=backwards)
    expected = references["mixtral", "one rank"]
    require_agreement(found, expected)
    assert first_difference(found, expected) is not None


def test_another_batch_is_told_apart_at_once(references):
    model = models.FAMILIES["mixtral"]
    found = run(
        "mixtral", LAYOUTS["one rank"], batches=lambda step: models.batches(model, step + 1)
    )
    assert first_difference(found, references["mixtral", "one rank"]) == "step 1 loss"

"""Orders by name, at any prices."""

from dataclasses import replace
from functools import partial

import pytest

from weft.compose.order import named_order, searched
from weft.compose.price import Nominal, nominal_pricing
from weft.compose.step import training_step
from weft.compose.timeline import place_step
from weft.parallel.layout import Dispatch, Layout
from weft.parallel.sync import Sync, Wire
from weft.schedule.check import check
from weft.testing import models

LAYOUT = Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER)
BF16 = Sync(gradients=Wire.BF16)


def plan(order: str):
    return models.plan(models.mixtral_like(), LAYOUT, order=order)


@pytest.mark.parametrize("order", ["serial", "overlapped", "paper"])
def test_every_segment_has_an_order_by_name(order):
    for ordered in training_step(plan(order)).templates.values():
        assert named_order(plan(order))(ordered.program).program == ordered.program
        check(ordered)


def few(order: str):
    return partial(searched, plan=plan(order), pricing=nominal_pricing(), timings=100)


def seconds(step) -> float:
    return sum(placed.timeline.seconds for placed in place_step(step, Nominal()))


def test_a_searched_step_is_no_longer_than_one_by_name():
    by_name = [seconds(training_step(plan(o))) for o in ("serial", "overlapped", "paper")]
    assert seconds(training_step(plan("auto"), few("auto"))) <= min(by_name)


def test_a_reduction_in_sixteen_bits_is_searched_too():
    made = replace(models.plan(models.mixtral_like(), Layout(dp=2), order="auto"), sync=BF16)
    bodies = {t.body for o in training_step(made).templates.values() for t in o.program.tasks}
    assert "all_to_all_grad" in bodies


def test_prices_come_from_the_caller():
    """Free communication leaves nothing to hide; the order follows the prices."""
    step = training_step(plan("serial"))
    program = step.templates["moe.backward"].program
    free = nominal_pricing(Nominal(link=1e30, latency=0.0))
    dear = nominal_pricing(Nominal(link=1e6))
    orders = [named_order(plan("auto"), pricing)(program) for pricing in (free, dear)]
    assert orders[0].program.tasks != orders[1].program.tasks

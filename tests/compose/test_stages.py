"""A pipeline priced: pieces of work in seconds, the dearest stage in charge."""

import pytest

from weft.compose.price import nominal_pricing
from weft.compose.stages import price_stages, slots_of
from weft.parallel.layout import Layout
from weft.schedule.pipeline import Pass, Work, order_of
from weft.schedule.stages import bubble
from weft.testing import models

MODEL = models.mixtral_like().with_shape(layers=4)


def planned(**layout):
    return models.plan(MODEL, Layout(pp=2, **layout))


def test_every_piece_of_every_stage_has_its_time():
    slots = slots_of(planned(), nominal_pricing())
    assert len(slots) == 2 * 2 * models.MICRO_BATCHES
    assert all(slot.stop > slot.start for slot in slots)
    assert 0 < bubble(slots) < 1


def test_the_head_makes_the_backward_of_its_stage_dearer():
    plan = planned(layers=(2, 2))
    first, last = price_stages(plan, nominal_pricing())
    order = order_of(plan.schedule, 0)
    forward, backward = Work(Pass.FORWARD, 0, 0), Work(Pass.BACKWARD, 0, 0)
    assert last.costs(order)[backward] > first.costs(order)[backward]
    assert last.costs(order)[forward] <= first.costs(order)[forward]


def test_weights_put_off_cost_what_they_cost_in_place():
    whole, split = planned(), planned(pipeline="zero_bubble")
    (one, *_), (other, *_) = (price_stages(p, nominal_pricing()) for p in (whole, split))
    before = sum(one.costs(order_of(whole.schedule, 0)).values())
    after = sum(other.costs(order_of(split.schedule, 0)).values())
    assert after == pytest.approx(before)

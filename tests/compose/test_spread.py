from dataclasses import replace

import pytest

from weft.compose.spread import attention_of, feed_forward_of
from weft.parallel.context import Zigzag
from weft.parallel.deduplicate import ByVisits
from weft.parallel.expert import ByExchange, ByGathering, ByGatheringWithin, EveryExpert
from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout
from weft.parallel.sequence import Together, Ulysses
from weft.parallel.strategy import InPlace
from weft.parallel.tensor import HeadSlices, WidthSlices
from weft.testing import models


@pytest.mark.parametrize(
    ("layout", "attention", "experts", "dense"),
    [
        (Layout(), Together, EveryExpert, InPlace),
        (Layout(attention=Attention.TP, ffn=FeedForward.TP), Together, EveryExpert, InPlace),
        (Layout(sp=2, ep=2), Ulysses, ByExchange, InPlace),
        (Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER), Ulysses, ByGathering, InPlace),
        (Layout(sp=2, ep=2, dispatch=Dispatch.DEDUPLICATED), Ulysses, ByVisits, InPlace),
        (Layout(sp=2, ffn=FeedForward.TP), Ulysses, WidthSlices, WidthSlices),
        (Layout(sp=2, ep=2, attention=Attention.TP), HeadSlices, ByExchange, InPlace),
        (Layout(sp=2, attention=Attention.CP), Zigzag, EveryExpert, InPlace),
    ],
    ids=lambda value: value.name() if isinstance(value, Layout) else "",
)
def test_a_layout_means_one_strategy_of_each_sort(layout, attention, experts, dense):
    plan = models.plan(models.mixtral_like(), layout)
    assert isinstance(attention_of(plan), attention)
    found = feed_forward_of(plan)
    assert isinstance(found[0], experts)
    assert isinstance(found[1], dense)


def test_a_bound_on_rows_means_a_strategy_of_its_own():
    plan = models.plan(models.mixtral_like(), Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER))
    experts, _ = feed_forward_of(replace(plan, row_bound=1.5))
    assert isinstance(experts, ByGatheringWithin)
    assert experts.rows == replace(plan, row_bound=1.5).bounded_rows


def test_routed_and_dense_slices_are_one_so_that_tokens_are_gathered_once():
    plan = models.plan(models.deepseek_like(), Layout(sp=2, ffn=FeedForward.TP))
    experts, dense = feed_forward_of(plan)
    assert experts is dense

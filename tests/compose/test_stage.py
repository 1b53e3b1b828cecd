from dataclasses import replace

import pytest

from weft.compose.stage import chunks_of, layer_counts, owned, validate
from weft.errors import LayoutError
from weft.parallel.layout import Layout
from weft.testing import models

MODEL = models.mixtral_like().with_shape(layers=4)


def planned(rank: int = 0, *, pp: int = 2, tied: bool = False, **fields):
    model = MODEL.with_shape(tied=tied)
    return models.plan(model, replace(Layout(pp=pp), **fields), rank)


def test_every_parameter_is_on_one_stage_and_a_tied_embedding_at_both_ends():
    for tied in (False, True):
        names = [p.name for rank in range(2) for p in owned(planned(rank, tied=tied))]
        whole = [p.name for p in owned(planned(pp=1, tied=tied))]
        assert sorted(names) == sorted(whole + (["embed"] if tied else []))


def test_chunks_of_a_rank_are_stages_apart():
    first, second = chunks_of(planned(0, pipeline="interleaved", chunks=2))
    assert (first.layers, second.layers) == (range(1), range(2, 3))
    assert (first.first, first.last, second.first, second.last) == (True, False, False, False)
    assert chunks_of(planned(1, pipeline="interleaved", chunks=2))[1].last


def test_a_recipe_may_cut_the_layers_itself():
    assert [c.layers for c in chunks_of(planned(1, layers=(3, 1)))] == [range(3, 4)]


def test_a_head_that_costs_a_layer_leaves_the_last_stage_one_less():
    plan = planned()
    wide = replace(plan, shape=replace(plan.shape, vocab=2**14))
    assert layer_counts(wide) == (3, 1)


@pytest.mark.parametrize("layers", [(4,), (2, 1), (4, 0)])
def test_a_cut_that_does_not_hold_every_layer_once_is_refused(layers):
    with pytest.raises(LayoutError, match=r"try \[2, 2\]"):
        validate(planned(layers=layers))


def test_more_stages_than_layers_are_refused():
    with pytest.raises(LayoutError, match="8 stages for 4 layers"):
        validate(planned(pp=8))

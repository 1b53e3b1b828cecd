from dataclasses import replace

import pytest

from weft.compose.plan import (
    LOADS,
    Balance,
    drop_places,
    is_all_gather,
    load_places,
    loss_rows,
    sizes,
    statistics_size,
    validate,
    without_bound,
    without_limit,
)
from weft.errors import LayoutError
from weft.graph.dims import LEGEND
from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout
from weft.testing import models

BUCKETS = {"Z", "y", "z"}  # sizes of buckets, not of a layer


def plan(layout: Layout | None = None, rank: int = 0, family: str = "mixtral"):
    return models.plan(models.FAMILIES[family], layout, rank)


def test_every_letter_but_those_of_buckets_has_a_size():
    assert sizes(plan()).numbers.keys() == LEGEND.keys() - BUCKETS


def test_sequence_parallel_ranks_share_tokens_and_heads():
    n = sizes(plan(Layout(sp=2)))
    assert (n.N, n.T, n.J, n.K) == (32, 16, 2, 1)


def test_kv_heads_are_replicated_beyond_their_number():
    assert sizes(plan(Layout(sp=4))).K == 1


def test_a_share_of_qkv_is_its_heads():
    n = sizes(plan(Layout(sp=2)))
    assert n.P == (n.J + 2 * n.K) * n.C
    assert n.Q == (n.H + 2 * n.G) * n.C


def test_routed_rows_are_bounded_by_every_token_choosing_this_rank():
    n = sizes(plan(Layout(dp=2, sp=2, ep=4)))
    assert n.L == 2
    assert n.T * n.k == n.R
    assert n.bounds["R"] == n.T * 4 * 2


def test_the_bound_counts_no_more_choices_than_local_experts():
    n = sizes(plan(Layout(dp=2, sp=4, ep=8)))
    assert n.bounds["R"] == n.T * 8 * 1


def test_a_rank_knows_its_first_expert():
    layout = Layout(dp=2, sp=2, ep=2)
    assert [plan(layout, rank).first_expert for rank in range(4)] == [0, 4, 0, 4]


def test_micro_batches_are_dealt_over_data_parallel_ranks():
    assert plan(Layout(dp=2, sp=2)).local_micro_batches == 2


def test_sums_are_carried_in_at_least_float32():
    precisions = ("bfloat16", "float32", "float64")
    assert [replace(plan(), precision=p).accumulation for p in precisions] == [
        "float32", "float32", "float64",
    ]  # fmt: skip


def test_statistics_hold_their_sums_the_load_of_every_expert_and_what_each_layer_dropped():
    shape = plan().shape
    assert load_places(shape) == slice(LOADS, LOADS + 2 * 8)
    assert drop_places(shape) == slice(LOADS + 2 * 8, LOADS + 2 * 8 + 2)
    assert statistics_size(shape) == LOADS + 2 * 8 + 2 + 1  # and what overflowed


@pytest.mark.parametrize(
    ("capacity", "groups", "choices"), [(0.0, 4, 0), (1.0, 4, 16), (1.1, 4, 18), (0.01, 8, 1)]
)
def test_a_group_of_experts_takes_so_many_even_shares_of_64_choices(capacity, groups, choices):
    balance = Balance(device_groups=groups, capacity=capacity)
    limited = replace(plan(), arithmetic=replace(plan().arithmetic, balance=balance))
    assert limited.group_capacity == choices
    assert without_limit(limited).group_capacity == 0


@pytest.mark.parametrize(
    ("layout", "bound", "rows"),
    [
        (Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER), 1.0, 32),
        (Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER), 1.1, 36),
        (Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER), 9.0, 64),
        (Layout(dp=4, ep=4, dispatch=Dispatch.ALL_GATHER), 1.5, 96),
        (Layout(sp=2, ep=2), 1.5, 0),
        (Layout(sp=2, dispatch=Dispatch.ALL_GATHER), 1.5, 0),
        (Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER), 0.0, 0),
    ],
    ids=str,
)
def test_room_is_so_many_even_shares_of_rows_and_no_more_than_there_can_be(layout, bound, rows):
    bounded = replace(plan(layout), row_bound=bound)
    assert bounded.bounded_rows == rows
    assert without_bound(bounded).bounded_rows == 0


@pytest.mark.parametrize(
    ("vocab", "rows", "narrow"), [(32000, 1024, 4096), (2**15, 1024, 4096), (151936, 256, 512)]
)
def test_chunks_of_the_loss_are_a_power_of_two_within_the_budget(vocab, rows, narrow):
    wide = replace(plan(), shape=replace(plan().shape, vocab=vocab))
    assert loss_rows(wide) == rows
    assert loss_rows(replace(wide, precision="bfloat16")) == narrow


def test_chunks_never_shrink_below_256_rows():
    assert loss_rows(replace(plan(), shape=replace(plan().shape, vocab=2**20))) == 256


def test_only_one_dispatch_is_all_gather():
    assert is_all_gather(Layout(dispatch=Dispatch.ALL_GATHER))
    assert not is_all_gather(Layout())


def test_a_dense_layer_beside_shared_experts_has_its_own_width():
    shape = models.deepseek_like().shape
    assert shape.shared_hidden != shape.dense_ffn_hidden
    n = sizes(plan(family="deepseek"))
    assert (n.W, n.w) == (shape.dense_ffn_hidden, shape.shared_hidden)


def test_a_sliced_feed_forward_has_a_slice_of_each_width_and_every_row_of_its_group():
    whole, sliced = (
        sizes(plan(Layout(sp=2, ffn=ffn), family="deepseek"))
        for ffn in (FeedForward.EP, FeedForward.TP)
    )
    assert [2 * getattr(sliced, x) for x in "FWw"] == [getattr(whole, x) for x in "FWw"]
    assert (sliced.U, sliced.R, sliced.L) == (whole.N, 2 * whole.R, whole.L)


def test_context_parallel_ranks_attend_with_every_head():
    n = sizes(plan(Layout(sp=8, attention=Attention.CP)))
    assert (n.J, n.K) == (n.H, n.G)


@pytest.mark.parametrize(
    ("family", "layout", "message"),
    [
        ("mixtral", Layout(sp=2, ep=2, ffn=FeedForward.TP), "leaves none to ep; try ep = 1"),
        ("mixtral", Layout(sp=4, dp=4, ffn=FeedForward.TP, attention=Attention.CP), None),
        ("mixtral", Layout(sp=16, attention=Attention.CP), "8 pairs of tokens .* try sp = 8"),
        ("olmoe", Layout(sp=2, attention=Attention.TP), "no slice of a norm over all heads"),
        ("qwen2", Layout(sp=4, attention=Attention.TP), "biased key/value head; try sp = 2"),
    ],
    ids=str,
)
def test_what_cannot_be_cut_is_refused_before_anything_starts(family, layout, message):
    made = models.plan({**models.FAMILIES, **models.VARIANTS}[family], layout)
    if message is None:
        assert validate(made) is made
        return
    with pytest.raises(LayoutError, match=message):
        validate(made)

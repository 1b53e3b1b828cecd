from dataclasses import replace

import pytest

from weft.compose.plan import Plan, sizes
from weft.compose.price import flops
from weft.compose.step import training_step
from weft.parallel.layout import Dispatch, Layout
from weft.planner.work import Attend, Passing, Products, Sending, Waiting, Way, Work, work
from weft.testing import models


def planned(layout: Layout, family: str = "mixtral") -> Plan:
    return models.plan(models.FAMILIES[family], layout)


def works(plan: Plan) -> dict[str, list[Work]]:
    step, n = training_step(plan), sizes(plan)
    found: dict[str, list[Work]] = {}
    for ordered in step.templates.values():
        for task in ordered.program.tasks:
            found.setdefault(task.body, []).append(work(task, ordered.program, n))
    return found


LARGE = models.plan(models.large_mixtral(), Layout(sp=2, ep=2))


def test_products_know_their_shape_and_their_flops_follow_from_it():
    step, n = training_step(LARGE), sizes(LARGE)
    for ordered in step.templates.values():
        for task in ordered.program.tasks:
            asked = work(task, ordered.program, n)
            if isinstance(asked, Products):
                times = 3 if asked.phase == "fused" else 1
                assert 2 * asked.rows * asked.n * asked.k * times == flops(task, n), task.name
                assert asked.flops == flops(task, n)


def test_experts_are_as_many_products_as_there_are_on_the_rank():
    found = works(LARGE)
    n = sizes(LARGE)
    for body in ("expert_up", "expert_up.dgrad", "expert_up.wgrad", "expert_up.wgrad_first"):
        (asked,) = set(found[body])
        assert isinstance(asked, Products)
        assert (asked.groups, asked.rows, asked.n, asked.k) == (n.L, n.R, 2 * n.F, n.D)


def test_a_product_in_chunks_is_as_many_smaller_ones():
    cut = works(replace(LARGE, split=("qkv", "dispatch", "combine")))
    whole = works(LARGE)
    for body, field in (("qkv_project", "rows"), ("expert_up", "rows"), ("expert_down", "n")):
        (one,), parts = whole[body], cut[body]
        assert [getattr(part, field) for part in parts] == [getattr(one, field) // 2] * 2
        assert sum(part.flops for part in parts) == one.flops


def test_a_stretch_of_a_weight_costs_nothing_and_rows_that_merge_their_bytes():
    cut = works(replace(LARGE, split=("dispatch", "combine")))
    n = sizes(LARGE)
    assert all(w == Waiting(synchronises=False) for w in cut["slice_chunk"])
    assert [w.synchronises for w in cut["all_splits_to_host"]] == [True]
    up = max(cut["merge_rows"], key=lambda asked: asked.moved)
    assert up.moved >= 2 * 2 * n.R * 2 * n.F


def test_products_of_woven_segments_find_their_weights():
    plan = replace(LARGE, across=True, merge=True, micro_batches=4)
    step, n = training_step(plan), sizes(plan)
    woven = [o.program for name, o in step.templates.items() if "+" in name]
    asked = [work(t, p, n) for p in woven for t in p.tasks if t.body == "expert_down.wgrad"]
    assert asked
    assert all(isinstance(one, Products) for one in asked)


def test_the_router_is_bound_by_reading_tokens():
    assert all(isinstance(w, Passing) for w in works(LARGE)["router_logits"])


def test_every_task_of_every_layout_is_some_work():
    for layout in (
        Layout(),
        Layout(dp=2, ep=2),
        Layout(sp=2, ep=2),
        Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER),
    ):
        for family in models.FAMILIES:
            found = works(planned(layout, family))
            assert any(isinstance(w, Attend) for w in found["attention.dgrad"])
            assert all(isinstance(w, Sending) for w in found["gather_params"])


def test_the_degree_of_a_gradient_group_follows_from_its_shard():
    found = works(planned(Layout(dp=2, sp=2, ep=2)))["reduce_scatter_grad"]
    assert {(w.axis, w.degree) for w in found if isinstance(w, Sending)} == {
        ("dense", 4),
        ("edp", 2),
    }


def test_one_rank_sends_nothing():
    for collective in works(planned(Layout()))["reduce_scatter_grad"]:
        assert isinstance(collective, Sending)
        assert (collective.wire, collective.degree) == (0, 1)


def test_a_host_task_synchronises_and_a_view_is_nothing():
    found = works(planned(Layout(sp=2, ep=2)))
    assert found["splits_to_host"][0] == Waiting(synchronises=True)
    assert found["split_heads"][0] == Waiting(synchronises=False)


def test_rows_by_an_index_are_told_from_streams():
    found = works(LARGE)
    ways = {
        body: {w.way for w in found[body] if isinstance(w, Passing)}
        for body in ("permute", "gather_sum", "swiglu")
    }
    assert ways == {"permute": {Way.ROWS}, "gather_sum": {Way.SUMS}, "swiglu": {Way.STREAM}}


@pytest.mark.parametrize("body", ["adamw", "square_sum"])
def test_the_optimizer_is_a_pass_over_its_shard(body: str):
    plan = planned(Layout(dp=2))
    found = works(plan)[body]
    shards = sum(bucket.shard for bucket in training_step(plan).buckets)
    moved = sum(w.moved for w in found if isinstance(w, Passing))
    assert moved >= shards * 4


def test_a_gradient_that_is_written_is_not_read():
    """Its accumulator counts once, and so does what a pass behind the product makes of it."""
    found, n = works(LARGE), sizes(LARGE)
    (adding,), (writing,) = (set(found[f"expert_up.{p}"]) for p in ("wgrad", "wgrad_first"))
    elements = n.L * 2 * n.F * n.D
    assert isinstance(adding, Products)
    assert isinstance(writing, Products)
    assert adding.moved - writing.moved == 4 * elements
    assert (adding.added, writing.added) == (12 * elements, 8 * elements)
    assert adding.flops == writing.flops

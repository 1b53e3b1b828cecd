from dataclasses import replace

import pytest

from weft.parallel.layout import Layout
from weft.planner.cluster import cluster
from weft.planner.cost import rates
from weft.planner.search import Wanted, candidates, losers, plan_of, search, state_bytes
from weft.testing import models

MODEL = models.large_mixtral().with_shape(layers=4)


def wanted(on: str = "1x4xH800", **changes) -> Wanted:
    made = Wanted(
        name="mixtral",
        shape=MODEL.shape,
        arithmetic=MODEL.arithmetic,
        cluster=cluster(on),
        batch=8,
        sequence=4096,
    )
    return replace(made, **changes)


ASKED = wanted()
FOUND = search(ASKED, rates(ASKED.cluster.machine))


def test_the_best_come_first_and_fit():
    times = [best.simulated.seconds for best in FOUND.best]
    assert times == sorted(times)
    assert times
    assert all(best.memory.all <= ASKED.room for best in FOUND.best)


def test_every_candidate_uses_every_rank_and_divides_the_batch():
    for choice in candidates(ASKED):
        assert choice.pp * choice.dp * choice.sp == ASKED.cluster.ranks
        assert ASKED.batch % (choice.dp * choice.micro_batch) == 0
        assert max(choice.sp, choice.ep) <= ASKED.cluster.node


def test_a_plan_is_the_choice():
    choice = FOUND.best[0].choice
    layout = plan_of(choice, ASKED).layout
    assert isinstance(layout, Layout)
    assert (layout.pp, layout.dp, layout.sp, layout.ep) == (
        choice.pp, choice.dp, choice.sp, choice.ep,
    )  # fmt: skip


def test_what_does_not_fit_says_by_how_much():
    small = replace(ASKED.cluster.machine.device, memory_bytes=2e9)
    tight = replace(ASKED.cluster, machine=replace(ASKED.cluster.machine, device=small))
    found = search(wanted(cluster=tight), rates(tight.machine))
    assert found.best == ()
    assert all("out of memory by" in e.refused for e in found.estimates)


def test_every_other_value_of_a_knob_has_its_reason():
    told = dict(losers(FOUND))
    winner = FOUND.best[0].choice
    for sp in {c.sp for c in candidates(ASKED)} - {winner.sp}:
        assert told[f"sp {sp}"]


def test_replicated_key_value_heads_are_named():
    shape = replace(MODEL.shape, kv_heads=2)
    asked = wanted(shape=shape)
    found = search(asked, rates(asked.cluster.machine))
    told = dict(losers(found))
    if found.best[0].choice.sp != 4:
        assert "kv_heads 2 < sp 4: KV replicated x2" in told["sp 4"]


def test_one_rank_has_one_layout():
    asked = wanted("1x1xH200", batch=4)
    assert {(c.pp, c.dp, c.sp, c.ep) for c in candidates(asked)} == {(1, 1, 1, 1)}


@pytest.mark.parametrize("ep", [1, 2, 4])
def test_experts_over_more_ranks_hold_less(ep: int):
    some = [c for c in candidates(ASKED) if (c.pp, c.sp) == (1, 4)]
    held = {c.ep: state_bytes(c, ASKED) for c in some}
    assert held[ep] >= held[4]

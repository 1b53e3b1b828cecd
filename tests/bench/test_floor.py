"""A floor is work over ceilings: FLOPs or bytes, whichever takes longer."""

from dataclasses import replace

import pytest

from weft.bench.floor import floors
from weft.bench.profile import widths
from weft.compose.plan import sizes
from weft.compose.recipe import plan
from weft.compose.step import training_step


def found(recipe, ceilings):
    step = training_step(plan(recipe(), 0))
    return floors(step, sizes(step.plan), widths("float32"), ceilings)


def test_every_body_of_a_rank_alone_has_a_floor(recipe, ceilings) -> None:
    least = found(recipe, ceilings)
    without = {name for name, ms in least.items() if ms == 0}
    views = {"join_heads", "join_heads.dgrad"}
    assert without - views == {"gather_params", "reduce_scatter_grad", "sum_statistics"}


def test_adamw_reads_four_tensors_and_writes_four(recipe, ceilings) -> None:
    step = training_step(plan(recipe(), 0))
    elements = sum(bucket.shard for bucket in step.buckets)
    least = found(recipe, ceilings)["adamw"]
    # and the parameters
    assert least == pytest.approx(32 * elements / ceilings.copy * 1e3, rel=1e-3)  # and a verdict


def test_faster_ceilings_lower_what_is_bound_by_them(recipe, ceilings) -> None:
    fast = replace(ceilings, copy=2 * ceilings.copy)
    slow, quick = found(recipe, ceilings), found(recipe, fast)
    assert quick["add"] == pytest.approx(slow["add"] / 2)
    assert quick["attention"] == slow["attention"]

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from weft.compose.plan import Plan, sizes
from weft.compose.recipe import plan as make_plan
from weft.compose.step import training_step
from weft.config.load import build
from weft.parallel.layout import Dispatch, Layout
from weft.planner.memory import Memory, kept_bytes, memory
from weft.testing import models

ROOT = Path(__file__).parents[2]


def planned(layout: Layout, **changes) -> Plan:
    made = models.plan(models.large_mixtral(), layout, precision="bfloat16")
    return replace(made, sequence=4096, **changes)


def held(plan: Plan, imbalance: float = 1.0) -> Memory:
    return memory(training_step(plan), plan, imbalance=imbalance)


RECORDS = ROOT / "benchmarks/results/h200/predict.jsonl"


def recorded() -> list[tuple[Plan, int]]:
    lines = map(json.loads, RECORDS.read_text().splitlines())
    return [(make_plan(build(tomllib.loads(o["config"])), 0), o["peak_bytes"]) for o in lines]


def test_every_recorded_peak_is_met_within_three_percent():
    for plan, peak in recorded():
        assert held(plan).all == pytest.approx(peak, rel=0.03), plan.layout.name()


def test_forgotten_optimizer_state_would_be_noticed():
    plan, peak = recorded()[0]
    assert replace(held(plan), optimizer=0).all != pytest.approx(peak, rel=0.03)


def test_parts_make_the_whole():
    found = held(planned(Layout(sp=2, ep=2)))
    assert found.all == sum(found.parts.values())
    assert min(found.weights, found.gradients, found.optimizer, found.activations) > 0


def test_more_replicas_hold_less_optimizer_state_and_as_many_weights():
    one, four = held(planned(Layout())), held(planned(Layout(dp=4)))
    assert four.weights == pytest.approx(one.weights, rel=1e-3)
    assert four.optimizer == pytest.approx(one.optimizer / 4, rel=1e-2)


def test_imbalance_fills_dispatch_and_what_is_kept_and_nothing_else():
    plan = planned(Layout(sp=2, ep=2))
    even, skewed = held(plan), held(plan, 1.5)
    assert skewed.dispatch > even.dispatch
    assert skewed.activations > even.activations
    assert (skewed.weights, skewed.optimizer) == (even.weights, even.optimizer)


def test_a_bound_on_rows_takes_its_room_whatever_comes():
    plan = planned(Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER))
    bounded = replace(plan, row_bound=1.5)
    assert held(bounded).activations == held(bounded, 1.2).activations
    assert held(bounded).activations == held(plan, 1.5).activations


def test_rematerialisation_keeps_less_step_by_step():
    kept = [
        held(planned(Layout(sp=2, ep=2), remat=policy)).activations
        for policy in ("none", "selective", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 3


def test_a_first_stage_keeps_a_micro_batch_for_every_stage():
    """Both are fullest in a backward that has freed the same part of what its layer kept."""
    shape = replace(models.large_mixtral().shape, layers=4)
    plan = replace(planned(Layout(pp=4, sp=2, ep=2)), shape=shape, micro_batches=16)
    last = replace(plan, rank=3 * plan.layout.stage)
    plan, last = (replace(p, layout=replace(p.layout, layers=(1,) * 4)) for p in (plan, last))
    program = training_step(last).templates["moe.forward"].program
    layer = kept_bytes(program, sizes(last))
    assert held(plan).activations - held(last).activations == 3 * layer
    assert 0.7 * layer < held(last).activations < layer


def test_what_is_kept_is_in_whole_values():
    plan = planned(Layout())
    program = training_step(plan).templates["moe.forward"].program
    n = sizes(plan)
    assert kept_bytes(program, n) > 2 * n.T * n.D

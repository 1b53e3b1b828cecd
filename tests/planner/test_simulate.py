import time
from dataclasses import replace

import pytest

from weft.compose.plan import Plan, sizes
from weft.parallel.layout import Dispatch, Layout
from weft.planner.cost import Rates, rates
from weft.planner.machine import machine
from weft.planner.simulate import Job, Regime, Simulated, Studio, asked_of, skews
from weft.planner.work import Way
from weft.testing import models

H800 = rates(machine("H800"))
STUDIO = Studio()


def planned(layout: Layout, *, layers: int = 4, micro_batches: int = 16, **changes) -> Plan:
    made = models.plan(models.large_mixtral().with_shape(layers=layers), layout)
    made = replace(made, sequence=4096, micro_batch=1, order="overlapped", precision="bfloat16")
    return replace(made, micro_batches=micro_batches, **changes)


def simulated(
    layout: Layout, found: Rates = H800, regime: Regime | None = None, **more
) -> Simulated:
    return STUDIO.simulate(Job(plan=planned(layout, **more), regime=regime or Regime()), found)


def test_parts_make_the_whole():
    done = simulated(Layout(pp=2, dp=2, sp=2, ep=2))
    parts = done.products + done.others + sum(done.exposed.values()) + done.bubble
    assert parts == pytest.approx(done.seconds)
    assert min(done.products, done.others, done.bubble) > 0


def test_one_rank_has_neither_bubble_nor_exposed_communication():
    done = simulated(Layout())
    assert done.bubble == pytest.approx(0, abs=1e-9)
    assert sum(done.exposed.values()) == pytest.approx(0, abs=1e-9)


def test_micro_batches_take_the_same_time_without_a_pipeline_but_for_the_first():
    """The first one writes gradients that the others read and add to."""
    some, more, most = (simulated(Layout(), micro_batches=m).run.seconds for m in (16, 32, 48))
    each = (more - some) / 16
    assert most - more == pytest.approx(more - some)
    assert 0.5 * each < some - 15 * each < each
    assert simulated(Layout(), micro_batches=1).run.seconds == pytest.approx(some - 15 * each)


def test_the_bubble_is_that_of_the_pipeline():
    done = simulated(Layout(pp=4), layers=8, micro_batches=64)
    assert 0 < done.bubble < done.seconds * 3 / 16


def test_chunks_shorten_the_bubble():
    plain = simulated(Layout(pp=4), layers=8)
    chunked = simulated(Layout(pp=4, pipeline="interleaved", chunks=2), layers=8)
    assert chunked.bubble < plain.bubble


def test_a_forward_in_chunks_exposes_less():
    slow = replace(H800.machine, link=replace(H800.machine.link, bandwidth=4e10))
    found = replace(H800, machine=slow)
    layout = Layout(sp=4, ep=4, dispatch=Dispatch.ALL_GATHER)
    whole, cut = (
        sum(simulated(layout, found, split=split).segments["moe.forward"].exposed.values())
        for split in ((), ("dispatch", "combine"))
    )
    assert cut < 0.7 * whole


def test_chunks_of_a_collective_wait_for_the_last_rank_once():
    pairs = ("dispatch", "combine")
    plan = planned(Layout(sp=4, ep=4, dispatch=Dispatch.ALL_GATHER), split=pairs)
    program = STUDIO.compose(plan, H800).templates["moe.forward"].program
    late = skews(asked_of(program, sizes(plan)), H800)
    assert late["all_gather/0"] + late["all_gather/1"] == pytest.approx(H800.constants.skew)
    assert late["all_to_all"] == H800.constants.skew


def test_a_slower_link_exposes_more():
    slow = replace(H800.machine, link=replace(H800.machine.link, bandwidth=2e10))
    layout = Layout(sp=4, ep=4, dispatch=Dispatch.ALL_GATHER)
    fast, held = simulated(layout), simulated(layout, replace(H800, machine=slow))
    assert sum(held.exposed.values()) > 3 * sum(fast.exposed.values())


def test_a_dead_link_is_refused_not_free():
    dead = replace(H800.machine, link=replace(H800.machine.link, bandwidth=0.0))
    with pytest.raises(ZeroDivisionError):
        simulated(Layout(sp=4, ep=4), replace(H800, machine=dead))


def test_the_fullest_rank_sets_the_pace():
    skewed = replace(H800, constants=replace(H800.constants, imbalance=1.5))
    layout = Layout(sp=4, ep=4)
    assert simulated(layout, skewed).products > 1.2 * simulated(layout).products


def test_fused_launches_hide_what_a_serial_forward_shows():
    layout = Layout(sp=4, ep=4, dispatch=Dispatch.ALL_GATHER)
    plain, fused = (simulated(layout, regime=Regime(fused=f)) for f in (False, True))
    waits = {cause: t for cause, t in fused.exposed.items() if cause != "inside fused launches"}
    assert fused.seconds < plain.seconds
    assert sum(waits.values()) < sum(plain.exposed.values())


def test_gradients_beside_the_backward_cost_less():
    layout = Layout(dp=4, sp=2, ep=2)
    beside, behind = (simulated(layout, regime=Regime(beside=b)) for b in (True, False))
    assert beside.exposed["gradients"] < behind.exposed["gradients"]
    assert beside.seconds < behind.seconds


def test_row_movement_by_the_framework_costs_more():
    layout = Layout(sp=4, ep=4)
    none, gathers = frozenset[Way](), frozenset((Way.ROWS,))
    plain, half = (simulated(layout, regime=Regime(streamed=s)) for s in (none, gathers))
    assert plain.others > half.others > simulated(layout).others


def test_utilisation_is_that_of_the_model_and_below_one():
    done = simulated(Layout(pp=2, sp=2, ep=2))
    assert 0 < done.flops < H800.machine.device.peak_flops


def test_fifteen_stages_of_sixty_micro_batches_take_no_two_seconds_of_one_core():
    orders = {"pipeline": "interleaved", "chunks": 4, "layers": (1,) * 60}
    plan = planned(Layout(pp=15, sp=8, ep=8, **orders), layers=60, micro_batches=60)
    begun = time.process_time()
    done = Studio().simulate(Job(plan=plan), H800)
    assert time.process_time() - begun < 2.0
    assert done.run.seconds > 0

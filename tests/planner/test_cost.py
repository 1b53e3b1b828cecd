import json
from dataclasses import replace
from pathlib import Path

import pytest

from weft.compose.plan import Plan, sizes
from weft.compose.recipe import plan as make_plan
from weft.compose.step import named_order, training_step
from weft.config.load import load
from weft.parallel.layout import Layout
from weft.planner.constants import constants
from weft.planner.cost import Rates, imbalanced, message, pricing, rates, seconds
from weft.planner.machine import machine, names
from weft.planner.work import Passing, Products, Sending, Way
from weft.schedule.check import check
from weft.testing import models

ROOT = Path(__file__).parents[2]
H200, H800 = rates(machine("H200")), rates(machine("H800"))
MB = 10**6


def products(rows: int, n: int, k: int, groups: int = 1, phase: str = "") -> Products:
    flops = 2 * rows * n * k
    return Products(rows=rows, n=n, k=k, groups=groups, phase=phase, flops=flops, moved=1)


def sending(algorithm: str, size: float, degree: int, axis: str = "sp") -> Sending:
    wire = size * (degree - 1) / degree
    return Sending(
        algorithm=algorithm, axis=axis, label="x", wire=wire, degree=degree, tensor=round(size)
    )


def priced(plan: Plan, found: Rates, factor: float = 1.0) -> dict[str, float]:
    step, price, n = training_step(plan), pricing(found), imbalanced(sizes(plan), factor)
    total: dict[str, float] = {}
    for instance in step.instances:
        program = step.templates[instance.template].program
        for task in program.tasks:
            total[task.body] = total.get(task.body, 0.0) + price(task, program, n)
    return total


@pytest.mark.parametrize("name", names())
def test_every_task_has_a_price_on_every_machine(name: str):
    large = models.plan(models.large_mixtral(), Layout(sp=2, ep=2))
    for body, price in priced(large, rates(machine(name))).items():
        assert 0 <= price < 1, body


def test_a_measured_shape_costs_what_was_measured():
    cube = products(8192, 8192, 8192)
    assert seconds(cube, H200) == pytest.approx(cube.flops / 736e12, rel=0.02)


def test_a_shape_between_measured_ones_costs_something_between():
    cube = products(5792, 5792, 5792)
    assert 600e12 < cube.flops / seconds(cube, H200) < 760e12


def test_a_tile_more_than_the_multiprocessors_costs_a_wave():
    full, more = products(128 * 132, 256, 4096), products(128 * 132 + 1, 256, 4096)
    assert seconds(more, H800) > 1.2 * seconds(full, H800)


def test_no_product_is_faster_than_the_sustained_peak():
    device = machine("H800").device
    for rows in (100, 1000, 3072, 10_000):
        asked = products(rows, 28672, 4096, groups=4)
        assert asked.flops / seconds(asked, H800) < device.peak_flops * device.sustained


def test_a_measured_message_takes_what_was_measured():
    took = message(sending("all_gather", 64 * MB, 2), H200)
    assert took == pytest.approx(64 * MB / 2 / 179e9, rel=1e-6)


def test_a_small_message_costs_its_latency_however_small():
    one, none = (message(sending("all_to_all", size, 2), H200) for size in (MB, MB / 1000))
    assert none == pytest.approx(one, rel=1e-6)


def test_bandwidth_rises_with_the_size_of_a_message():
    sizes_ = [2**i * MB for i in range(11)]
    bus = [s / 2 / message(sending("all_to_all", s, 2), H200) for s in sizes_]
    assert bus == sorted(bus)


def test_copy_engines_beat_nccl_on_the_machine_where_both_were_measured():
    fast = replace(H200, transport="symmetric")
    for size in (MB, 16 * MB, 256 * MB):
        asked = sending("all_to_all", size, 2)
        assert message(asked, fast) < message(asked, H200)


def test_a_group_that_leaves_its_node_is_as_fast_as_its_cards():
    inside, outside = sending("all_gather", 256 * MB, 8), sending("all_gather", 256 * MB, 8, "edp")
    card = H800.machine.nic.bandwidth * H800.constants.network
    assert message(outside, H800) == pytest.approx(outside.wire / card, rel=0.1)
    assert message(inside, H800) < message(outside, H800)


def test_a_group_of_whole_nodes_uses_all_their_cards():
    asked = sending("all_gather", 1024 * MB, 16, "dense")
    link = H800.machine.link.bandwidth * H800.constants.ring
    assert message(asked, H800) == pytest.approx(asked.wire / link, rel=0.05)


def test_a_group_of_one_is_silent_even_without_a_link():
    dead = replace(H800.machine, link=replace(H800.machine.link, bandwidth=0.0))
    assert message(sending("all_gather", MB, 1), replace(H800, machine=dead)) == 0.0


def test_no_bandwidth_is_an_error_not_a_free_message():
    dead = replace(H800.machine, link=replace(H800.machine.link, bandwidth=0.0))
    with pytest.raises(ZeroDivisionError):
        message(sending("all_gather", MB, 2), replace(H800, machine=dead))


def test_the_fullest_rank_has_more_rows_and_never_more_than_all():
    n = sizes(models.plan(models.large_mixtral(), Layout(sp=2, ep=2)))
    assert imbalanced(n, 1.0) == n
    assert imbalanced(n, 1.5).R == 1.5 * n.R
    assert n.bounds["R"] == imbalanced(n, 1e9).R


def test_imbalance_lengthens_experts_and_their_rows_alone():
    plan = models.plan(models.large_mixtral(), Layout(sp=2, ep=2))
    even, skewed = priced(plan, H800), priced(plan, H800, 1.9)
    longer = {body for body in even if skewed[body] > even[body]}
    assert {"swiglu", "all_to_all_rows", "reorder"} <= longer
    assert not longer & {"qkv_project", "attention", "rms_norm", "adamw"}


def test_index_driven_rows_cost_more_than_streams():
    stream = Passing(body="x", moved=100 * MB, way=Way.STREAM)
    assert seconds(replace(stream, way=Way.ROWS), H800) > seconds(stream, H800)
    assert seconds(replace(stream, way=Way.SUMS), H800) > seconds(stream, H800)


def test_a_recorded_step_costs_what_it_took():
    lines = (ROOT / "benchmarks/results/h200/step.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        config = load(ROOT / f"recipes/{line['recipe']}.toml", ["parallel.sp=1", "parallel.ep=1"])
        predicted = sum(priced(make_plan(config, 0), H200).values())
        assert predicted * 1e3 == pytest.approx(line["step_ms"]["median"], rel=0.1)


def test_a_slower_machine_of_the_record_is_noticed():
    config = load(ROOT / "recipes/h200-mixtral-2layer.toml", ["parallel.sp=1", "parallel.ep=1"])
    products_ = tuple(replace(p, flops=p.flops / 2) for p in H200.machine.measured.products)
    slow = replace(H200.machine, measured=replace(H200.machine.measured, products=products_))
    predicted = sum(priced(make_plan(config, 0), replace(H200, machine=slow)).values())
    assert predicted > 1.2 * 0.291


def test_an_order_at_the_prices_of_a_machine_is_legal():
    plan = replace(models.plan(models.large_mixtral(), Layout(sp=2, ep=2)), order="overlapped")
    step = training_step(plan, named_order(plan, pricing(H200)))
    for ordered in step.templates.values():
        check(ordered)


def test_the_constants_are_those_of_the_file():
    assert H800.constants == constants()

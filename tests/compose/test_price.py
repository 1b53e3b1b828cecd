from dataclasses import replace

import pytest

from weft.compose.plan import Plan, sizes
from weft.compose.price import BYTES, Nominal, flops, price, value_bytes, wire_bytes
from weft.compose.step import training_step
from weft.graph.program import Program, Task
from weft.model.count import token_flops
from weft.parallel.layout import Dispatch, Layout
from weft.parallel.sync import Sync, Wire
from weft.testing import models


def planned(layout: Layout, family: str = "mixtral") -> Plan:
    return models.plan(models.FAMILIES[family], layout)


def find(program: Program, body: str, label: str | None = None) -> Task:
    return next(
        t for t in program.tasks if t.body == body and label in (None, t.attributes.get("label"))
    )


TWO = planned(Layout(sp=2, ep=2))
GATHER = planned(Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER))


def forward(plan: Plan) -> Program:
    return training_step(plan).templates["moe.forward"].program


def wire(plan: Plan, body: str, label: str) -> float:
    program = forward(plan)
    return wire_bytes(find(program, body, label), program, sizes(plan), BYTES)


def test_a_sequence_all_to_all_moves_half_of_it_between_two():
    n = sizes(TWO)
    assert wire(TWO, "all_to_all", "qkv") == n.N * n.P * 2 / 2


def test_balanced_rows_leave_for_every_rank_alike():
    n = sizes(TWO)
    assert wire(TWO, "all_to_all_rows", "rows") == n.T * n.k * n.D * 2 / 2


def test_an_all_gather_brings_the_tokens_of_the_others():
    n = sizes(GATHER)
    assert wire(GATHER, "all_gather", "tokens") == n.T * n.D * 2


def test_a_reduce_scatter_brings_the_partial_sums_of_the_others():
    n = sizes(GATHER)
    assert wire(GATHER, "reduce_scatter", "outputs") == n.U * n.D * 2 / 2


def test_renamed_dims_count_by_what_stands_in_their_place():
    plan = planned(Layout(), "deepseek")
    program = training_step(plan).templates["shared_moe.forward"].program
    n = sizes(plan)
    shared = [t for t in program.tasks if t.body == "project" and "D" in t.renames]
    assert flops(shared[0], n) == 2 * n.T * n.D * 2 * n.w


def test_a_gradient_costs_a_forward_and_attention_five_products_for_two():
    program = training_step(TWO).templates["moe.backward"].program
    n = sizes(TWO)
    up = 4 * n.R * n.D * n.F
    assert flops(find(program, "expert_up.dgrad"), n) == up
    assert flops(find(program, "expert_up.wgrad"), n) == up
    attention = 2 * n.N * n.S * n.J * n.C
    assert flops(find(program, "attention.dgrad"), n) == attention * 5 // 2


def test_a_step_of_products_costs_what_the_model_counts():
    """Six FLOPs a token for each parameter that it is multiplied by; attention left out."""
    plan = planned(Layout())
    n = sizes(plan)
    products = (
        "qkv_project",
        "project",
        "router_logits",
        "expert_up",
        "expert_down",
        "cross_entropy",
    )
    step = training_step(plan)
    total = 0
    for instance in step.instances:
        for task in step.templates[instance.template].program.tasks:
            total += flops(task, n) if task.op.name in products else 0
    expected = plan.tokens * plan.local_micro_batches * token_flops(plan.shape, sequence=0)
    norms = 6 * (2 * 2 + 1) * plan.shape.hidden * plan.tokens * plan.local_micro_batches
    assert total == expected - norms


def test_the_price_of_compute_is_the_larger_of_work_and_traffic():
    program, n = forward(TWO), sizes(TWO)
    task = find(program, "expert_up")
    moved = sum(value_bytes(v, program, n, BYTES) for v in (*task.inputs, *task.outputs))
    fast = Nominal(flops=1e30, memory=1e9, link=1e9, latency=0)
    slow = Nominal(flops=1.0, memory=1e30, link=1e9, latency=0)
    assert price(task, program, n, fast) == moved / 1e9
    assert price(task, program, n, slow) == flops(task, n)


def test_a_collective_costs_its_latency_even_when_it_moves_nothing():
    program, n = forward(TWO), sizes(TWO)
    task = find(program, "sum_load")
    assert price(task, program, n, Nominal(latency=1.0)) == pytest.approx(1.0, rel=1e-6)


def test_a_reduction_brings_a_rank_its_shard_from_the_others_and_the_update_their_parameters():
    step, n = training_step(TWO), sizes(TWO)
    bucket = step.buckets[0]
    reduction = step.templates[f"reduce.dense.{bucket.numel}"].program
    update = step.templates["update"].program
    scatter, gather = find(reduction, "reduce_scatter_grad"), find(update, "gather_params")
    assert wire_bytes(scatter, reduction, n, BYTES) == bucket.numel * 4 / 2
    assert wire_bytes(gather, update, n, BYTES) == bucket.numel * 2 / 2


def test_a_compressed_gradient_has_half_the_bytes_and_its_cast_a_price():
    plan = replace(planned(Layout(dp=4)), sync=Sync(gradients=Wire.BF16))
    step, n = training_step(plan), sizes(plan)
    bucket = step.buckets[0]
    program = step.templates[f"reduce.dense.{bucket.numel}"].program
    exchange, cast = find(program, "all_to_all_grad"), find(program, "encode_grad")
    assert wire_bytes(exchange, program, n, BYTES) == bucket.numel * 2 * 3 / 4
    assert price(cast, program, n, Nominal(memory=1.0)) == bucket.numel * (4 + 2)
    ring = replace(plan, sync=Sync(gradients=Wire.BF16_RING))
    program = training_step(ring).templates[f"reduce.dense.{bucket.numel}"].program
    hops = [task for task in program.tasks if task.body == "pass_on"]
    assert sum(wire_bytes(hop, program, n, BYTES) for hop in hops) == bucket.numel * 2 * 3 / 4

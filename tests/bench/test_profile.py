"""A profile accounts for every task of a step, and for the time that no body explains."""

from collections import Counter

import pytest

from weft.bench.profile import REST, STEP, ZERO, Sum, lane, profile, render, summarise, wire, work
from weft.bench.rig import rigged
from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.model.count import token_flops, total


def test_every_task_of_the_step_is_in_a_row(recipe, place, ceilings) -> None:
    with rigged(recipe(), place) as rig:
        found = profile(rig, steps=2, ceilings=ceilings)
        step = rig.stage.step
    calls = Counter(
        task.body for i in step.instances for task in step.templates[i.template].program.tasks
    )
    bodies = {row.name: row for row in found.rows if row.lane not in ("wait", "")}
    assert {name: row.calls for name, row in bodies.items()} == calls
    assert bodies["expert_up"].flops > 0
    assert bodies["permute"].moved_bytes > 0
    assert bodies["gather_params"].moved_bytes == 0  # posted on a host: its time is no transfer
    for name in (*bodies, REST, ZERO, STEP):
        assert name in render(found)


def test_the_products_of_a_step_are_the_work_of_the_model(recipe) -> None:
    """6 N + 6 L A s a token, the norms aside, which multiply without being products."""
    made = plan(recipe(), 0)
    done = work(training_step(made))
    products = ("qkv_project", "project", "attention", "expert", "cross_entropy", "router_logits")
    counted = sum(flops for name, flops in done.items() if name.startswith(products))
    tokens = made.tokens * made.local_micro_batches
    a_token = token_flops(made.shape, sequence=made.sequence) - 6 * total(made.shape).norm
    # attention's backward has a fifth product, the scores once more: 3.5 of the forward, and not 3
    again = done["attention"] // 2
    assert counted == tokens * a_token + again


def test_the_wire_is_counted_on_a_device_only(recipe) -> None:
    step = training_step(plan(recipe("parallel.sp=2", "parallel.ep=2"), 0))
    assert wire(step, on_device=True)["all_to_all"] > 0
    assert not any(wire(step, on_device=False).values())


def test_what_no_body_explains_is_a_row_and_collectives_beside_compute_explain_nothing() -> None:
    one = {
        STEP: Sum(calls=1, ms=60.0),
        "add": Sum(calls=2, ms=3.0),
        "all_to_all": Sum(calls=1, ms=50.0),
        "wait.sp": Sum(calls=1, ms=4.0),
    }
    found = summarise([one], {"add": 7}, {"add": 8}, {"add": 1.0}, beside=True)
    rows = {row.name: row for row in found.rows}
    assert rows[REST].ms == pytest.approx(53.0)
    assert found.exposed_ms == pytest.approx(4.0)
    assert (rows["add"].flops, rows["add"].moved_bytes, rows["add"].calls) == (7, 8, 2)
    assert [row.name for row in found.rows] == [REST, "all_to_all", "wait.sp", "add"]
    posted = summarise([one], {}, {}, {}, beside=False)
    assert {row.name: row.ms for row in posted.rows}[REST] == pytest.approx(3.0)


def test_rates_are_of_products_or_of_bytes() -> None:
    one = {
        STEP: Sum(calls=1, ms=3.0),
        "project": Sum(calls=1, ms=1.0),
        "add": Sum(calls=1, ms=1.0),
        ZERO: Sum(calls=1, ms=1.0),
    }
    flops, moved = {"project": 2_000_000, "add": 5}, {"project": 7, "add": 3_000_000}
    rates = {row.name: row.rate() for row in summarise([one], flops, moved, {}, beside=True).rows}
    assert rates == {"project": "2.0 GFLOP/s", "add": "3.0 GB/s", ZERO: "", REST: ""}


def test_rows_know_their_lane() -> None:
    names = ("all_to_all", "splits_to_host", "add", "wait.sp", ZERO)
    assert [lane(name) for name in names] == ["comm", "host", "compute", "wait", ""]

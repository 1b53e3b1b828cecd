"""A step's results as one flat object: figures by hand, nulls where nothing is known."""

import math
import time

import pytest
import torch
from tests.trainer.conftest import ALONE

from weft.compose.recipe import plan
from weft.config.run import RunConfig
from weft.model.count import token_flops
from weft.trainer import record

CPU = torch.device("cpu")
LOADS = [4.0, 0.0, 2.0, 2.0, 1.0, 3.0, 4.0, 0.0]  # 2 layers of 4 experts
DROPPED = [0.0, 3.0]


@pytest.fixture
def line(few_steps: RunConfig) -> dict:
    return line_of(few_steps, [2.5, 0.02, 0.0, 9.0])


def line_of(config: RunConfig, sums: list[float], refused: float = 0.0) -> dict:
    results = {
        "stats": torch.tensor([*sums, 0.0, 0.0, 0.0, *LOADS, *DROPPED]),
        "verdict": torch.tensor([1.0, refused]),
    }
    reading = record.read(
        results,
        step=3,
        tokens=128,
        lr=0.1,
        watch=record.Stopwatch(CPU),
        exposed_seconds=0.25,
        starved_seconds=0.002,
    )
    return record.record(reading, plan(config, 0), CPU)


def test_sums_are_read_from_their_places(line: dict) -> None:
    assert (line["loss"], line["loss_hex"]) == (2.5, (2.5).hex())
    assert (line["grad_norm"], line["z_loss"]) == (3.0, 0.0)
    assert line["aux_loss"] == pytest.approx(0.02)
    assert (line["step"], line["tokens"], line["lr"]) == (3, 3 * 128, 0.1)
    assert (line["exposed_comm_ms"], line["starved_ms"]) == (250.0, 2.0)


def test_load_is_over_an_even_spread_and_extremes_are_over_all_layers(line: dict) -> None:
    assert (line["expert_load_max"], line["expert_load_min"]) == (2.0, 0.0)
    assert line["dead_experts"] == 2


def test_each_layer_has_its_own_load_entropy_and_violation(line: dict) -> None:
    assert line["expert_load"] == [[2.0, 0.0, 1.0, 1.0], [0.5, 1.5, 2.0, 0.0]]
    assert line["expert_load_violation"] == [1.0, 1.0]
    chances = (1 / 8, 3 / 8, 4 / 8)
    second = -sum(p * math.log(p, 4) for p in chances)
    assert line["expert_load_entropy"] == [0.75, round(second, 4)]


def test_what_each_layer_dropped_is_counted(line: dict) -> None:
    assert line["dropped"] == [0, 3]


def test_dense_layers_have_no_dead_experts(few_steps: RunConfig) -> None:
    model = few_steps.model.model_copy(update={"dense_layers": 1, "dense_ffn_hidden": 32})
    line = line_of(few_steps.model_copy(update={"model": model}), [1.0, 0.0, 0.0, 1.0])
    assert line["dead_experts"] == 1
    assert line["expert_load_max"] == 2.0
    assert line["expert_load"] == [[0.5, 1.5, 2.0, 0.0]]
    assert line["dropped"] == [3]
    dense = few_steps.model_copy(update={"model": model})
    assert record.routed_layers(plan(dense, 0)) == (1,)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(few_steps: RunConfig, value: float) -> None:
    line = line_of(few_steps, [value, value, value, abs(value)], refused=1.0)
    for field in ("loss", "aux_loss", "z_loss", "grad_norm"):
        assert line[field] is None
    assert line["skipped"] is True
    assert str(float.fromhex(line["loss_hex"])) == str(value)


def test_time_is_measured_from_the_start_of_the_watch() -> None:
    watch = record.Stopwatch(CPU)
    time.sleep(0.02)
    watch.stop()
    assert 20 <= watch.milliseconds() < 2000


def test_utilisation_is_flops_over_the_peak_of_all_ranks(
    few_steps: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = few_steps.train.model_copy(update={"precision": "bfloat16"})
    parallel = few_steps.parallel.model_copy(update={"dp": 2})
    config = few_steps.model_copy(update={"train": train, "parallel": parallel})
    monkeypatch.setattr(record, "peak_flops", lambda _: 1e9)
    line = line_of(config, [1.0, 0.0, 0.0, 1.0])
    flops = token_flops(plan(config, 0).shape, sequence=config.data.sequence)
    assert line["mfu"] == pytest.approx(line["tokens_per_s"] * flops / 2e9)
    assert record.unmeasured(plan(config, 0), CPU) == {}
    other = plan(few_steps, 0)
    assert record.unmeasured(other, CPU) == {
        "mfu": "the peak rate is of bfloat16 and this run computes in another dtype"
    }


def test_every_null_of_a_cpu_has_a_reason(few_steps: RunConfig, line: dict) -> None:
    assert {key for key, value in line.items() if value is None} == set(
        record.unmeasured(plan(few_steps, 0), CPU)
    )


def test_memory_is_in_bytes() -> None:
    assert 50e6 < record.peak_bytes(ALONE.device) < 1e12  # an interpreter with torch, and no more

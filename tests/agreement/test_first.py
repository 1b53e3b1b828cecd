"""Gradients that are first written have the bits of gradients added to zeros, in every layout.

Whatever a step does not zero holds no number before it: nothing may read it. The way before, where
all gradients are zeroed and added to, is the reference.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.compose.test_first import added

from weft.compose import step as step_module
from weft.compose.first import Begun, begun, usual_of
from weft.compose.plan import Crossings, Plan
from weft.compose.step import evaluation_step
from weft.ops.fused import sequences
from weft.ops.registry import cpu_bodies, reference_bodies
from weft.parallel.layout import Dispatch, Layout
from weft.parallel.sync import Sync, Wire
from weft.runtime.state import State
from weft.testing import models
from weft.testing.agreement import Trace, Work, first_difference, run_layout

REFERENCE = {**reference_bodies(), **sequences(reference_bodies())}
FUSED = ("permute_up.wgrad", "reorder_up.wgrad", "down_gather.wgrad", "down_reorder.wgrad")
GATHER, ONCE = Dispatch.ALL_GATHER, Dispatch.DEDUPLICATED
SMALL, ROUNDED = Sync(gradients=Wire.BF16, bucket=512), Sync(zero=2, gradients=Wire.BF16)
SINGLE = {"precision": "float32"}  # half of a buffer holds what is sent
FP8 = Crossings(dispatch="fp8", combine="fp8", dispatch_grad="fp8", combine_grad="fp8")
CASES = {
    "one rank": {},
    "one micro-batch": {"layout": Layout(dp=4)},
    "replicas": {"layout": Layout(dp=2)},
    "all_to_all": {"layout": Layout(sp=2, ep=2)},
    "all_gather": {"layout": Layout(sp=2, ep=2, dispatch=GATHER)},
    "deduplicated": {"layout": Layout(sp=2, ep=2, dispatch=ONCE)},
    "folded": {"layout": Layout(dp=2, sp=2, ep=4)},
    "across": {"layout": Layout(sp=2, ep=2), "across": True},
    "merged": {"merge": True},
    "both": {"layout": Layout(sp=2, ep=2), "across": True, "merge": True, "remat": "selective"},
    "1f1b": {"layout": Layout(pp=2)},
    "interleaved": {"layout": Layout(pp=2, pipeline="interleaved", chunks=2), "layers": 4},
    "zero bubble": {"layout": Layout(pp=2, pipeline="zero_bubble")},
    "rounded wire": {"layout": Layout(dp=2), "sync": Sync(gradients=Wire.BF16), **SINGLE},
    "ring": {"layout": Layout(dp=2), "sync": Sync(gradients=Wire.BF16_RING), **SINGLE},
    "small buckets": {"layout": Layout(dp=2), "sync": SMALL, **SINGLE},
    "zero 2": {"layout": Layout(dp=2), "sync": Sync(zero=2), "layers": 3},
    "zero 2 rounded": {"layout": Layout(dp=2), "sync": ROUNDED, **SINGLE},
    "zero 2 across": {"layout": Layout(dp=2, sp=2, ep=2), "sync": Sync(zero=2), "across": True},
    "zero 2 pipeline": {"layout": Layout(pp=2, dp=2), "sync": Sync(zero=2, bucket=512)},
    "two kinds": {"family": "deepseek", "layout": Layout(dp=2), "sync": Sync(zero=2)},
    "zero 2 biases": {"family": "gpt_oss", "layout": Layout(dp=2), "sync": Sync(zero=2)},
    "tied": {"family": "qwen3", "layout": Layout(pp=2)},
    "biases": {"family": "gpt_oss"},
    "fused": {"fused": FUSED},
    "fused and spread": {"fused": FUSED, "layout": Layout(sp=2, ep=2)},
    "in chunks": {"layout": Layout(sp=2, ep=2), "split": ("dispatch", "combine")},
    "eight bits": {"layout": Layout(sp=2, ep=2), "crossings": FP8},
    "capacity": {"layout": Layout(sp=2, ep=2), "capacity": 1.1},
}
EVERY = pytest.mark.parametrize("name", CASES)


def run(name: str, *, bodies=REFERENCE, steps: int = 2, routing=None, **more) -> Trace:
    fields = {**CASES[name], **more}
    family = fields.pop("family", "mixtral")
    model = {**models.FAMILIES, **models.VARIANTS}[family]
    layers, capacity = fields.pop("layers", model.shape.layers), fields.pop("capacity", 0.0)
    layout, model = fields.pop("layout", Layout()), model.with_shape(layers=layers)

    def plan_of(at: Layout, rank: int) -> Plan:
        plan = models.plan(model, at, rank, replay=routing is not None)
        balance = replace(plan.arithmetic.balance, capacity=capacity)
        return replace(plan, arithmetic=replace(plan.arithmetic, balance=balance), **fields)

    work = Work(batches=partial(models.batches, model), steps=steps, routing=routing)
    return run_layout(plan_of, layout, work, bodies=bodies)


def adding(name: str, **more) -> Trace:
    """The same with every gradient zeroed and added to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "begun", added)
        return run(name, **more)


@contextmanager
def spoiled() -> Iterator[None]:
    """Gradients hold no number when a step begins to zero them."""
    honest = State.begin

    def begin(state: State) -> None:
        for key, tensor in state.statics.items():
            if key.startswith(("gradients:", "shard:")):
                tensor.fill_(torch.nan)
        honest(state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(State, "begin", begin)
        yield


@EVERY
def test_written_gradients_have_the_bits_of_added_ones(name):
    with spoiled():
        found = run(name)
    assert first_difference(found, adding(name)) is None


@pytest.mark.parametrize("name", ["one rank", "folded", "zero 2 rounded", "zero bubble", "merged"])
@pytest.mark.parametrize("bodies", ["reference", "cpu"])
def test_they_do_in_bfloat16(bodies, name):
    table = {**REFERENCE, **(cpu_bodies() if bodies == "cpu" else {})}
    with spoiled():
        found = run(name, bodies=table, precision="bfloat16")
    assert first_difference(found, adding(name, bodies=table, precision="bfloat16")) is None


def late_experts(step: int, micro_batch: int, layer: int) -> NDArray[np.int64]:
    """Two experts alone in the first micro-batch of a rank, all of them later."""
    tokens = np.arange(models.SEQUENCE * models.MICRO_BATCH)
    if micro_batch % 2 == 0:
        return np.stack((0 * tokens, 0 * tokens + 1), axis=1)
    return np.stack(((tokens + layer) % 8, (tokens + layer + step) % 8), axis=1)


def no_experts(step: int, micro_batch: int, layer: int) -> NDArray[np.int64]:
    """All tokens to the experts of one rank, in every micro-batch."""
    tokens = np.arange(models.SEQUENCE * models.MICRO_BATCH)
    return np.stack((0 * tokens + 6, 0 * tokens + 7), axis=1)


@pytest.mark.parametrize("routing", [late_experts, no_experts], ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", ["one rank", "all_to_all", "all_gather", "folded", "zero 2"])
def test_experts_without_rows_get_zeros(name, routing):
    with spoiled():
        found = run(name, routing=routing)
    assert first_difference(found, adding(name, routing=routing)) is None


def test_what_is_not_zeroed_and_not_written_is_caught(monkeypatch):
    """Sabotage: a step that zeroes nothing lets the last step's values in."""
    expected = adding("replicas")

    def careless(templates, instances, buckets) -> Begun:
        made = begun(templates, instances, buckets)
        return replace(made, zeroed=dict.fromkeys(made.zeroed, ()))

    monkeypatch.setattr(step_module, "begun", careless)
    monkeypatch.setattr(step_module, "check_sums", _pass)
    with spoiled():
        found = run("replicas")
    assert first_difference(found, expected) is not None


@pytest.mark.parametrize("name", ["one rank", "replicas", "across", "1f1b", "merged"])
def test_a_second_micro_batch_that_writes_is_caught(name, monkeypatch):
    """Sabotage: what the first one wrote is lost."""

    def forgetful(templates, instances, buckets) -> Begun:
        made = begun(templates, instances, buckets)
        own = [name for name in made.templates if name != usual_of(name)]
        return replace(
            made,
            instances=tuple(
                replace(one, template=first) if (first := f"{one.template}@first") in own else one
                for one in made.instances
            ),
        )

    expected = adding(name)
    monkeypatch.setattr(step_module, "begun", forgetful)
    monkeypatch.setattr(step_module, "check_sums", _pass)
    assert first_difference(run(name), expected) is not None


def _pass(instances, *_others, **_named):
    return instances


def test_an_evaluation_writes_no_gradient():
    step = evaluation_step(models.plan(models.mixtral_like()))
    keys = {key for one in step.instances for key in one.statics.values()}
    assert not any(key.startswith("grad:") for key in keys)
    assert all(name == usual_of(name) for name in step.templates)

"""The derived backward of the whole model is what autograd makes of its forward, in float64."""

from dataclasses import replace
from functools import partial

import pytest

from weft.errors import VerificationError
from weft.ops.registry import cpu_bodies, reference_bodies
from weft.parallel.layout import Layout
from weft.testing import models
from weft.testing.agreement import Work, require_agreement, run_layout, run_oracle, stack, train

REFERENCE = reference_bodies()
BODIES = {"reference": REFERENCE, "cpu": {**REFERENCE, **cpu_bodies()}}
MODELS = {**models.FAMILIES, **models.VARIANTS}
FAMILY = pytest.mark.parametrize("family", models.FAMILIES)


def work(family: str) -> Work:
    return Work(batches=partial(models.batches, MODELS[family]), steps=1)


def plan_of(family: str, **fields):
    return partial(models.plan, MODELS[family], **fields)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("bodies", BODIES)
@pytest.mark.parametrize("order", ["serial", "overlapped"])
def test_explicit_gradients_are_those_of_autograd(family, bodies, order):
    explicit = run_layout(
        plan_of(family, order=order), Layout(), work(family), bodies=BODIES[bodies]
    )
    require_agreement(explicit, run_oracle(plan_of(family), work(family), bodies=REFERENCE))


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": True, "tied": False},
        {"tied": True},
        {"kv_heads": 1},
        {"kv_heads": 4},
        {"top_k": 1},
        {"top_k": 8},
        {"layers": 1},
    ],
    ids=str,
)
def test_any_shape_has_the_gradients_of_autograd(changes):
    model = models.mixtral_like().with_shape(**changes)
    plans = partial(models.plan, model)
    explicit = run_layout(plans, Layout(), work("mixtral"), bodies=REFERENCE)
    require_agreement(explicit, run_oracle(plans, work("mixtral"), bodies=REFERENCE))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalise", [True, False])
def test_any_router_has_the_gradients_of_autograd(score, renormalise):
    model = models.mixtral_like()
    rule = replace(model.arithmetic, score=score, renormalise=renormalise, scaling=2.5)
    plans = partial(models.plan, replace(model, arithmetic=rule))
    explicit = run_layout(plans, Layout(), work("mixtral"), bodies=REFERENCE)
    require_agreement(explicit, run_oracle(plans, work("mixtral"), bodies=REFERENCE))


@FAMILY
@pytest.mark.parametrize(
    ("body", "factor"),
    [("add_rms_norm.dgrad", 1 + 1e-8), ("expert_up.dgrad", 0.0), ("router_losses.dgrad", -1.0)],
)
def test_a_wrong_gradient_body_is_found(family, body, factor):
    """The sabotage control: one body a hair off, silent or of the wrong sign."""
    right = REFERENCE[body]
    wrong = {**REFERENCE, body: lambda *inputs, **attributes: right(*inputs, **attributes) * factor}
    explicit = run_layout(plan_of(family), Layout(), work(family), bodies=wrong)
    with pytest.raises(VerificationError, match="gradient"):
        require_agreement(explicit, run_oracle(plan_of(family), work(family), bodies=REFERENCE))


def test_a_gradient_that_is_not_accumulated_is_found():
    """The sabotage control: one layer's weight gradient goes nowhere."""
    ranks = stack(plan_of("mixtral"), Layout(), bodies=REFERENCE)
    explicit = train(ranks, work("mixtral"))
    lost = {**explicit.gradients, "layers.1.router": explicit.gradients["layers.1.router"] * 0}
    oracle = run_oracle(plan_of("mixtral"), work("mixtral"), bodies=REFERENCE)
    with pytest.raises(VerificationError, match=r"layers\.1\.router"):
        require_agreement(replace(explicit, gradients=lost), oracle)

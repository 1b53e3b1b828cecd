"""What keeps the load even is the same on every layout: losses, dropped choices, moved biases."""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from weft.compose.plan import Balance
from weft.errors import VerificationError
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Attention, Dispatch, Layout
from weft.testing import models
from weft.testing.agreement import (
    Stack,
    Trace,
    Work,
    compare,
    require_agreement,
    run_layout,
    run_oracle,
    stack,
    train,
)

BODIES = reference_bodies()
GATHER = Dispatch.ALL_GATHER
LAYOUTS = [
    Layout(sp=2, ep=2),
    Layout(sp=4, ep=4),
    Layout(sp=4, ep=4, dispatch=GATHER),
    Layout(dp=2),
    Layout(dp=2, sp=2, ep=4),
    Layout(dp=4, ep=4, dispatch=GATHER),
]
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.name)
LOSSES = ("device_coef", "sequence_coef", "global_coef")
ALL = Balance(
    device_groups=4, device_coef=0.2, sequence_coef=0.3, global_coef=0.4,
    bias_rate=0.01, capacity=1.0,
)  # fmt: skip
STEPS = 3


def model(family: str, balance: Balance) -> models.Model:
    chosen = models.FAMILIES[family]
    return replace(chosen, arithmetic=replace(chosen.arithmetic, balance=balance))


def plan_of(family: str, balance: Balance):
    return partial(models.plan, model(family, balance), order="overlapped")


def work(family: str, steps: int = STEPS) -> Work:
    return Work(batches=partial(models.batches, models.FAMILIES[family]), steps=steps)


@cache
def one_rank(family: str, balance: Balance = ALL) -> Trace:
    return run_layout(plan_of(family, balance), Layout(), work(family), bodies=BODIES)


@LAYOUT
@pytest.mark.parametrize("family", ["mixtral", "deepseek"])
def test_losses_drops_and_gradients_are_those_of_one_rank(family, layout):
    found = run_layout(plan_of(family, ALL), layout, work(family), bodies=BODIES)
    require_agreement(found, one_rank(family))
    counts = [name for name in found.sums if "dropped" in name or "load" in name]
    assert all(torch.equal(found.sums[n], one_rank(family).sums[n]) for n in counts)


@pytest.mark.parametrize("sp", [2, 4])
def test_ranks_with_a_part_of_every_sequence_have_the_losses_of_one(sp):
    roomy = replace(ALL, capacity=0.0)
    found = run_layout(
        plan_of("deepseek", roomy), Layout(sp=sp, ep=sp, attention=Attention.CP),
        work("deepseek"), bodies=BODIES,
    )  # fmt: skip
    require_agreement(found, one_rank("deepseek", roomy))


@pytest.mark.parametrize("family", ["mixtral", "deepseek"])
def test_groups_that_are_full_drop_and_groups_with_room_do_not(family):
    sums = one_rank(family).sums
    routed = range(models.FAMILIES[family].shape.dense_layers, models.FAMILIES[family].shape.layers)
    assert all(sums[f"step 1 dropped in layer {i}"] > 0 for i in routed)
    roomy = replace(ALL, capacity=4.0)  # the number of groups: one of them may take everything
    sums = one_rank(family, roomy).sums
    assert not any(value for name, value in sums.items() if "dropped" in name)


@pytest.mark.parametrize("layout", [Layout(), *LAYOUTS[:4]], ids=Layout.name)
def test_biases_and_past_loads_are_the_same_bits_on_every_rank_of_every_layout(layout):
    reference = stack(plan_of("deepseek", ALL), Layout(), bodies=BODIES)
    train(reference, work("deepseek"))
    ranks = stack(plan_of("deepseek", ALL), layout, bodies=BODIES)
    train(ranks, work("deepseek"))
    for expected in balance_of(reference):
        for found in balance_of(ranks):
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    biases = expected["state:layers.1.router_bias"]
    assert biases.any()
    assert biases.abs().max() <= STEPS * ALL.bias_rate + 1e-12
    assert not expected["state:layers.0.router_bias"].any(), "a dense layer has no load"


def balance_of(ranks: Stack) -> list[dict[str, torch.Tensor]]:
    return [
        {key: value for key, value in stage.state.statics.items() if key.startswith("state:")}
        for stage in ranks.stages
    ]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("coef", [*LOSSES, "capacity"])
def test_each_has_the_gradients_of_autograd(coef, score):
    balance = Balance(device_groups=4, **{coef: 0.5})
    chosen = model("mixtral", balance)
    arithmetic = replace(chosen.arithmetic, score=score, aux_coef=0.0, z_coef=0.0)
    plans = partial(models.plan, replace(chosen, arithmetic=arithmetic))
    ranks = stack(plans, Layout(), bodies=BODIES)
    explicit = train(with_past(ranks), work("mixtral", 1))
    oracle = run_oracle(plans, work("mixtral", 1), bodies=BODIES, prepare=with_past)
    require_agreement(explicit, oracle)
    quiet = replace(arithmetic, balance=Balance())
    plain = run_oracle(
        partial(models.plan, replace(chosen, arithmetic=quiet)), work("mixtral", 1), bodies=BODIES
    )
    assert compare(explicit.gradients, plain.gradients).error > 1e-6, "it has a gradient at all"


def with_past(ranks: Stack) -> Stack:
    for stage in ranks.stages:
        for past in stage.state.statics["balance:pasts"]:
            past.copy_(torch.linspace(0, 2, len(past)))
    return ranks


def test_a_balance_loss_scaled_by_data_parallelism_is_found():
    """The sabotage control: the loss of each micro-batch over those of a rank, not of the step."""
    plans = plan_of("mixtral", ALL)

    def scaled(layout: Layout, rank: int):
        made = plans(layout, rank)
        more = replace(made.arithmetic.balance, device_coef=ALL.device_coef * layout.dp)
        return replace(made, arithmetic=replace(made.arithmetic, balance=more))

    found = run_layout(scaled, Layout(dp=2), work("mixtral"), bodies=BODIES)
    with pytest.raises(VerificationError, match="balance loss"):
        require_agreement(found, one_rank("mixtral"))


def test_a_token_dropped_silently_is_found():
    """The sabotage control: one choice gets no row and is not counted."""
    right = BODIES["plan_rows"]

    def careless(chosen, **attrs):
        order, slots, counts, ends = right(chosen, **attrs)
        slots[0, 0] = -1
        return order, slots, counts, ends

    plans = plan_of("mixtral", Balance())
    found = run_layout(
        plans, Layout(sp=2, ep=2), work("mixtral", 1), bodies={**BODIES, "plan_rows": careless}
    )
    with pytest.raises(VerificationError, match=r"step 1 (loss|norm2|load)"):
        require_agreement(found, run_layout(plans, Layout(), work("mixtral", 1), bodies=BODIES))
    assert not any(value for name, value in found.sums.items() if "dropped" in name)


def test_groups_that_follow_the_ranks_are_found():
    """The sabotage control: groups that are those of the ranks drop other choices."""
    plans = plan_of("mixtral", ALL)

    def by_rank(layout: Layout, rank: int):
        made = plans(layout, rank)
        balance = replace(made.arithmetic.balance, device_groups=layout.ep)
        return replace(made, arithmetic=replace(made.arithmetic, balance=balance))

    found = run_layout(by_rank, Layout(sp=2, ep=2), work("mixtral"), bodies=BODIES)
    with pytest.raises(VerificationError, match="step"):
        require_agreement(found, one_rank("mixtral"))

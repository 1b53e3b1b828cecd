"""What the agreement checks are for: each planted fault is caught by the check that guards it."""

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch

from weft.comm.call import Call
from weft.comm.handle import Finished, Handle
from weft.comm.transport import Transport
from weft.compose.plan import Plan
from weft.errors import CommunicationError, VerificationError
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout
from weft.testing import agreement, models
from weft.testing.agreement import Stack, Trace, Work, require_agreement, run_layout, stack, train

BODIES = reference_bodies()
MODEL = models.mixtral_like()
FOUR = Layout(dp=2, sp=2, ep=2)


def plan_of(layout: Layout, rank: int) -> Plan:
    return models.plan(MODEL, layout, rank)


def work(steps: int = 3, *, late: int = 0) -> Work:
    return Work(batches=lambda step: models.batches(MODEL, step + late), steps=steps)


@cache
def one_rank() -> Trace:
    return run_layout(plan_of, Layout(), work(), bodies=BODIES)


class Deaf(Transport):
    """A wire on which collectives of one label bring a rank nothing but what it sent itself."""

    def __init__(self, inner: Transport, label: str, axis: str | None = None) -> None:
        self.inner, self.label, self.axis = inner, label, axis
        self.group_size, self.group_rank = inner.group_size, inner.group_rank
        self.barrier, self.close = inner.barrier, inner.close
        self.exposed_seconds, self.reset_exposed = inner.exposed_seconds, inner.reset_exposed
        self.sums_on_arrival, self.describe = inner.sums_on_arrival, inner.describe

    def group_size(self, axis: str) -> int: ...
    def group_rank(self, axis: str) -> int: ...
    def barrier(self) -> None: ...
    def close(self) -> None: ...
    def exposed_seconds(self) -> float: ...
    def reset_exposed(self) -> None: ...
    def sums_on_arrival(self) -> bool: ...
    def describe(self) -> str: ...

    def post(self, call: Call, x: torch.Tensor, out: torch.Tensor) -> Handle:
        if call.label != self.label or self.axis not in (None, call.axis):
            return self.inner.post(call, x, out)
        first = self.inner.group_rank(call.axis) * len(out) if len(x) > len(out) else 0
        return Finished(out.copy_(x[(first + torch.arange(len(out))) % len(x)]))


def refused(ranks: Stack, of: Work | None = None) -> str:
    with pytest.raises((VerificationError, CommunicationError)) as error:
        require_agreement(train(ranks, of or work()), one_rank())
    return str(error.value)


def stacked(layout: Layout = FOUR, wire: Callable[[Transport], Transport] | None = None) -> Stack:
    return stack(plan_of, layout, bodies=BODIES, wire=wire or (lambda transport: transport))


def test_without_sabotage_there_is_nothing_to_find():
    require_agreement(train(stacked(), work()), one_rank())


@pytest.mark.parametrize("axis", ["dense", "edp"])
def test_a_dropped_gradient_sum_is_caught(axis):
    message = refused(stacked(wire=partial(Deaf, label="gradients", axis=axis)))
    assert "found a relative error" in message


def test_two_swapped_experts_are_caught():
    ranks = stacked()
    for rank in (0, 2):
        for name in ("up", "down"):
            tensor = ranks.stages[rank].state.statics[f"param:layers.0.{name}"]
            tensor[:2] = tensor[:2].flip(0)
    assert "found a relative error" in refused(ranks)


def test_experts_swapped_on_one_replica_only_are_caught_as_such():
    ranks = stacked()
    tensor = ranks.stages[2].state.statics["param:layers.0.up"]
    tensor[:2] = tensor[:2].flip(0)
    assert "experts.0.gate of rank 2 differs from that of rank 0" in refused(ranks)


def test_data_one_step_late_are_caught():
    assert "sum step" in refused(stacked(), work(late=1))


def test_data_parallel_ranks_off_by_one_micro_batch_are_caught(monkeypatch):
    right = agreement.local_micro_batches

    def early(plan: Plan) -> range:
        """The second rank starts one too early: a micro-batch runs twice and the last never."""
        first = max(right(plan).start - 1, 0)
        return range(first, first + len(right(plan)))

    monkeypatch.setattr(agreement, "local_micro_batches", early)
    assert "found a relative error" in refused(stacked())


def test_another_seed_is_caught():
    assert "found a relative error" in refused(stack(plan_of, FOUR, bodies=BODIES, seed=1))


@pytest.mark.parametrize("label", ["qkv", "attention", "rows", "outputs", "weights"])
def test_a_collective_that_brings_nothing_from_others_is_caught(label):
    assert "found a relative error" in refused(stacked(wire=partial(Deaf, label=label)))


@pytest.mark.parametrize("label", ["tokens", "experts", "outputs"])
def test_a_gather_or_scatter_that_brings_nothing_from_others_is_caught(label):
    layout = Layout(sp=2, ep=2, dispatch=Dispatch.ALL_GATHER)
    assert "found a relative error" in refused(stacked(layout, partial(Deaf, label=label)))


@pytest.mark.parametrize(
    ("layout", "label"),
    [
        (Layout(sp=2, attention=Attention.TP), "tokens of attention"),
        (Layout(sp=2, attention=Attention.TP), "attention"),
        (Layout(sp=2, attention=Attention.CP), "keys and values"),
        (Layout(sp=2, ffn=FeedForward.TP), "tokens"),
        (Layout(sp=2, ffn=FeedForward.TP), "outputs"),
        (Layout(sp=2, ffn=FeedForward.TP), "weights"),
        (Layout(sp=2, ep=2, dispatch=Dispatch.DEDUPLICATED), "rows"),
        (Layout(sp=2, ep=2, dispatch=Dispatch.DEDUPLICATED), "outputs"),
        (Layout(sp=2, ep=2, dispatch=Dispatch.DEDUPLICATED), "weights"),
    ],
    ids=str,
)
def test_every_mechanism_is_caught_when_it_brings_nothing_from_others(layout, label):
    assert "found a relative error" in refused(stacked(layout, partial(Deaf, label=label)))


@pytest.mark.parametrize("what", ["attention", "ffn"])
def test_slices_that_trade_places_are_caught(what):
    layout = Layout(sp=2, attention=Attention.TP, ffn=FeedForward.TP)
    ranks = stacked(layout)
    for name in {"attention": ("out",), "ffn": ("down",)}[what]:
        one, two = (s.state.statics[f"param:layers.0.{name}"] for s in ranks.stages)
        kept = one.clone()
        one.copy_(two)
        two.copy_(kept)
    assert "found a relative error" in refused(ranks)


def test_a_gradient_of_a_slice_that_is_not_summed_is_caught():
    layout = Layout(sp=2, dp=2, attention=Attention.TP, ffn=FeedForward.TP)
    wire = partial(Deaf, label="gradients", axis="dp")
    assert "found a relative error" in refused(stacked(layout, wire))


def test_balance_losses_over_a_ranks_own_load_are_caught():
    message = refused(stacked(wire=partial(Deaf, label="load")))
    assert "balance loss" in message


def test_parameters_that_are_not_gathered_are_caught():
    class Silent(Deaf):
        def post(self, call, x, out):
            return Finished(out) if call.label == self.label else self.inner.post(call, x, out)

    assert "differs from that of rank" in refused(stacked(wire=partial(Silent, label="parameters")))


def test_a_statistic_that_is_not_summed_is_caught():
    assert "statistics of rank" in refused(stacked(wire=partial(Deaf, label="statistics")))

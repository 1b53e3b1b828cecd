"""The comparisons themselves; what they find in weft is in tests/agreement."""

import pytest
import torch

from weft.errors import VerificationError
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.testing import agreement, models
from weft.testing.agreement import Stack, Trace, Work, compare, first_difference, require_agreement

ONE = torch.ones(3, dtype=torch.float64)


def trace(**changes) -> Trace:
    whole = {
        "sums": {"step 1 loss": ONE[0]},
        "gradients": {"w": ONE, "v": ONE},
        "state": {"m": ONE},
    }
    return Trace(**{**whole, **changes})


def stacked(layout: Layout, replay: bool = False) -> Stack:
    return agreement.stack(
        lambda of, rank: models.plan(models.mixtral_like(), of, rank, replay=replay),
        layout,
        bodies=reference_bodies(),
    )


def work(**changes) -> Work:
    return Work(
        batches=lambda step: models.batches(models.mixtral_like(), step), steps=1, **changes
    )


def test_the_worst_value_is_named_with_its_error():
    found = compare({"a": ONE, "b": ONE * 1.5}, {"a": ONE, "b": ONE})
    assert found.name == "b"
    assert found.error == pytest.approx(0.5)


def test_not_a_number_is_the_worst_there_is():
    found = compare({"a": ONE * 9, "b": ONE * float("nan")}, {"a": ONE, "b": ONE})
    assert found == agreement.Difference(name="b", error=float("inf"))


@pytest.mark.parametrize(("ours", "theirs"), [({"a": ONE}, {}), ({}, {"a": ONE}), ({}, {})])
def test_a_name_on_one_side_is_no_agreement(ours, theirs):
    with pytest.raises(VerificationError, match="on one side only"):
        compare(ours, theirs)


def test_a_gradient_beyond_the_bound_is_named():
    wrong = trace(gradients={"w": ONE, "v": ONE * (1 + 1e-9)})
    with pytest.raises(VerificationError, match="gradient v: found a relative error of 1e-09"):
        require_agreement(wrong, trace())
    require_agreement(wrong, trace(), gradient=1e-8)


def test_a_loss_beyond_the_bound_is_named():
    wrong = trace(sums={"step 1 loss": ONE[0] * (1 + 1e-7)})
    with pytest.raises(VerificationError, match="sum step 1 loss"):
        require_agreement(wrong, trace())


def test_a_missing_sum_is_no_agreement():
    with pytest.raises(VerificationError, match="on one side only"):
        require_agreement(trace(sums={}), trace())


@pytest.mark.parametrize("part", ["sums", "gradients", "state"])
def test_one_bit_is_a_difference(part):
    name = next(iter(getattr(trace(), part)))
    value = getattr(trace(), part)[name]
    flipped = {**getattr(trace(), part), name: value + torch.finfo(torch.float64).eps}
    assert first_difference(trace(**{part: flipped}), trace()) == name
    assert first_difference(trace(), trace()) is None


def test_other_names_are_a_difference():
    assert first_difference(trace(state={}), trace()) == "the names of state"


def test_losses_are_listed_by_step():
    sums = {f"step {i} {what}": ONE[0] * i for i in range(1, 12) for what in ("loss", "z loss")}
    assert trace(sums=sums).losses == tuple(float(i) for i in range(1, 12))


def test_replicas_with_one_other_bit_are_named():
    ranks = stacked(Layout(dp=2))
    ranks.stages[1].state.statics["param:layers.1.down"][3, 0, 0] += 1e-16 + 1e-9
    with pytest.raises(
        VerificationError, match=r"layers\.1\.experts\.3\.down of rank 1 .* of rank 0"
    ):
        agreement.require_replicas(ranks.stages, "now")


def test_replicas_of_experts_need_not_be_on_rank_0():
    ranks = stacked(Layout(dp=2, sp=2, ep=2))
    ranks.stages[3].state.statics["param:layers.0.up"][0, 0, 0] += 1
    with pytest.raises(VerificationError, match=r"experts\.4\.gate of rank 3 .* of rank 1"):
        agreement.require_replicas(ranks.stages, "now")


def test_a_shard_that_two_ranks_own_is_found():
    ranks = stacked(Layout(dp=2))
    twice = (ranks.stages[0], ranks.stages[0])
    with pytest.raises(VerificationError, match=r"owned by (0|2) ranks, expected 1"):
        agreement.gather_state(twice)


def test_gathered_state_starts_as_the_parameters():
    one = agreement.gather_state(stacked(Layout()).stages)
    four = agreement.gather_state(stacked(Layout(dp=2, sp=2, ep=4)).stages)
    assert first_difference(trace(state=four), trace(state=one)) is None


def test_forced_choices_are_taken():
    def to_the_last(step, micro_batch, layer):
        return torch.tensor([[6, 7]]).expand(32, 2).numpy()

    found = agreement.train(stacked(Layout(sp=2, ep=2), replay=True), work(routing=to_the_last))
    assert found.sums["step 1 load of layer 0"].tolist() == [0] * 6 + [128, 128]


def test_a_learning_rate_of_zero_changes_no_parameter():
    ranks = stacked(Layout())
    before = agreement.gather_state(ranks.stages)
    after = agreement.train(ranks, work(lr=0.0)).state
    masters = {name for name in before if name.startswith("master")}
    assert all(torch.equal(before[name], after[name]) for name in masters)


def test_the_divisor_counts_targets_that_are_not_ignored():
    batches = models.batches(models.mixtral_like(), 1)
    assert agreement.count_targets(batches) == sum((b.targets != -100).sum() for b in batches)


def test_micro_batches_are_dealt_in_order():
    layout = Layout(dp=2, sp=2)
    dealt = [
        list(agreement.local_micro_batches(models.plan(models.mixtral_like(), layout, rank)))
        for rank in range(4)
    ]
    assert dealt == [[0, 1], [0, 1], [2, 3], [2, 3]]

"""The grouped product of torch against the loop over experts, in the dtype that GPUs run it in."""

import pytest
import torch

from weft.graph.opset import Tolerance
from weft.ops import grouped
from weft.testing.case import cases
from weft.testing.tolerance import gradient_bound, relative_bound, require_close

LABELS = list(cases("expert_up", torch.bfloat16))


def operands(label):
    rows, w, ends = cases("expert_up", torch.bfloat16)[label].inputs
    du = torch.randn(rows.shape[0], w.shape[1], generator=torch.Generator().manual_seed(2))
    return rows, w, ends, du.bfloat16()


@pytest.mark.parametrize("label", LABELS)
def test_grouped_forward_is_the_loop(label):
    rows, w, ends, _ = operands(label)
    bound = relative_bound(Tolerance.MATMUL, torch.bfloat16, rows.shape[1])
    found, wanted = (f(rows, w, ends) for f in (grouped.expert_up_grouped, grouped.expert_up))
    require_close(found, wanted, bound, "expert_up")


@pytest.mark.parametrize("label", LABELS)
def test_grouped_gradients_are_those_of_the_loop(label):
    rows, w, ends, du = operands(label)
    bound = gradient_bound(Tolerance.MATMUL, torch.bfloat16, w.shape[1])
    found = grouped.expert_up_dgrad_grouped(du, w, ends)
    require_close(found, grouped.expert_up_dgrad(du, w, ends), bound, "dgrad")
    accs = [torch.ones(w.shape) for _ in range(2)]
    found = grouped.expert_up_wgrad_grouped(accs[0], du, rows, ends)
    assert found is accs[0]
    assert found.dtype == torch.float32
    require_close(found, grouped.expert_up_wgrad(accs[1], du, rows, ends), bound, "wgrad")


def test_an_expert_without_rows_keeps_its_accumulator_bitwise():
    rows, w, ends, du = operands("empty_expert")
    before = torch.randn(w.shape)
    acc = grouped.expert_up_wgrad(before.clone(), du, rows, ends)
    assert torch.equal(acc[1], before[1])
    assert torch.equal(acc[3], before[3])
    assert not torch.equal(acc[0], before[0])


def test_forward_writes_every_row():
    """The output starts as uninitialised memory, which may hold anything, not-a-number included."""
    rows, w, ends, _ = operands("uneven")
    poison = torch.full((rows.shape[0], w.shape[1]), float("nan"), dtype=rows.dtype)
    out = poison[:9].addmm_(rows[:9], w[0].T, beta=0)
    assert torch.isfinite(out).all()
    assert torch.isfinite(grouped.expert_up(rows, w, ends)).all()

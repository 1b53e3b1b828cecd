"""Chunked cross entropy is cross entropy."""

import pytest
import torch
import torch.nn.functional as F

from weft.ops.loss import cross_entropy, cross_entropy_fused
from weft.testing.case import cases
from weft.testing.tolerance import GRADIENT_FLOAT64, require_close

LABELS = ["one_chunk", "chunks", "ignored"]


def operands(label):
    h, w, targets, _, _ = cases("cross_entropy", torch.float64)[label].inputs
    return h.clone().requires_grad_(), w.clone().requires_grad_(), targets


@pytest.mark.parametrize("chunk", [1, 4, 7, 1000])
@pytest.mark.parametrize("label", LABELS)
def test_loss_and_gradients_are_those_of_torch_for_any_chunk(label, chunk):
    h, w, targets = operands(label)
    expected = F.cross_entropy(h @ w.T, targets, ignore_index=-100)
    expected.backward()
    valid = int((targets >= 0).sum())
    zeros = torch.zeros(1, dtype=torch.float64), torch.zeros_like(w.detach())
    with torch.no_grad():
        loss, dh, dw = cross_entropy_fused(h, w, targets, valid, *zeros, chunk=chunk)
    require_close(loss[0], expected, GRADIENT_FLOAT64, "loss")
    require_close(dh, h.grad, GRADIENT_FLOAT64, "dh")
    require_close(dw, w.grad, GRADIENT_FLOAT64, "dw")


def test_micro_batches_add_up_to_the_mean_over_their_valid_targets():
    h, w, targets = operands("ignored")
    valid = int((targets >= 0).sum())
    loss = torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        for part in (slice(0, 6), slice(6, None)):
            cross_entropy(h[part], w, targets[part], valid, loss, chunk=4)
    require_close(loss[0], F.cross_entropy(h @ w.T, targets), GRADIENT_FLOAT64, "loss")


def test_ignored_rows_get_a_gradient_of_exact_zeros():
    h, w, targets = operands("ignored")
    zeros = torch.zeros(1, dtype=torch.float64), torch.zeros_like(w.detach())
    with torch.no_grad():
        _, dh, _ = cross_entropy_fused(h, w, targets, 3, *zeros, chunk=4)
    assert not dh[targets < 0].any()
    assert dh[targets >= 0].any(-1).all()


def test_large_logits_stay_finite():
    h, w, targets = torch.full((2, 4), 100.0), torch.full((6, 4), 100.0), torch.tensor([0, 5])
    loss, dh, _ = cross_entropy_fused(h, w, targets, 2, torch.zeros(1), torch.zeros(6, 4), chunk=8)
    torch.testing.assert_close(loss, torch.tensor([6.0]).log())
    assert torch.isfinite(dh).all()

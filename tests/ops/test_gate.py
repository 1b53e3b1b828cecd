"""The gate on a shared expert: half open at no logit, and computed in the wide dtype."""

import torch

from weft.ops.gate import shared_gate


def test_a_gate_that_sees_nothing_halves():
    f = torch.randn(4, 6)
    z, gate = shared_gate(f, torch.randn(4, 6), torch.zeros(1, 6))
    assert torch.equal(z, f / 2)
    assert gate.tolist() == [0.5] * 4


def test_a_narrow_gate_is_computed_in_the_wide_dtype():
    f, h, w = (torch.randn(n, 64).bfloat16() for n in (9, 9, 1))
    z, gate = shared_gate(f, h, w)
    wide, exact = shared_gate(f.double(), h.double(), w.double())
    assert gate.dtype == torch.float32
    torch.testing.assert_close(gate.double(), exact, rtol=1e-6, atol=0)
    assert z.dtype == torch.bfloat16
    assert torch.equal(z, wide.bfloat16())

"""The gate on a shared expert: half open at no logit, and computed in the wide dtype."""

import torch

from weft.ops.gate import shared_gate


def drawn(*rows, columns):
    maker = torch.Generator().manual_seed(0)
    return [torch.randn(n, columns, generator=maker) for n in rows]


def test_a_gate_that_sees_nothing_halves():
    f, h = drawn(4, 4, columns=6)
    z, gate = shared_gate(f, h, torch.zeros(1, 6))
    assert torch.equal(z, f / 2)
    assert gate.tolist() == [0.5] * 4


def test_a_narrow_gate_is_computed_in_the_wide_dtype():
    f, h, w = (x.bfloat16() for x in drawn(9, 9, 1, columns=64))
    z, gate = shared_gate(f, h, w)
    wide, exact = shared_gate(f.double(), h.double(), w.double())
    assert gate.dtype == torch.float32
    torch.testing.assert_close(gate.double(), exact, rtol=1e-6, atol=0)
    assert z.dtype == torch.bfloat16
    assert torch.equal(z, wide.bfloat16())

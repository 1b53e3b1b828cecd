"""The clamped SwiGLU: what lies beyond the limit neither counts nor learns."""

import torch

from weft.ops.clamped import clamped_swiglu, clamped_swiglu_dgrad

RULE = {"alpha": 1.702, "limit": 7.0}


def test_beyond_the_limit_nothing_changes_and_nothing_is_learned():
    u = torch.tensor([[9.0, 8.0], [7.0, 7.0]], dtype=torch.float64)  # gate | up
    ones = torch.ones(2, dtype=torch.float64)
    s = clamped_swiglu(u, ones, **RULE)
    assert s[0] == s[1]
    du, _ = clamped_swiglu_dgrad(torch.ones_like(s), u, ones, **RULE)
    assert not du[0].any()
    assert du[1].all()  # at the limit itself, as torch's clamp has it


def test_a_very_negative_gate_is_shut_and_not_clamped():
    u = torch.tensor([[-50.0, 3.0]], dtype=torch.float64)
    s = clamped_swiglu(u, torch.ones(1, dtype=torch.float64), **RULE)
    assert abs(s.item()) < 1e-30

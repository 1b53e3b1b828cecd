"""Groups of several experts, and more programs than are added at a time."""

import pytest
import torch

from weft.ops import balance as reference
from weft.testing.tolerance import require_close

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.triton import balance

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RULE = {
    "top_k": 2, "aux_coef": 0.3, "device_coef": 0.2, "sequence_coef": 0.1, "global_coef": 0.4,
    "z_coef": 0.2, "first": 0, "scale": 0.5,
}  # fmt: skip


def operands(tokens: int, experts: int, sequences: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    logits = torch.randn(tokens, experts, generator=generator)
    load = torch.randint(0, 50, (sequences, experts), generator=generator)
    past, losses = torch.rand(experts, generator=generator), torch.rand(2, generator=generator)
    return tuple(x.to(DEVICE) for x in (logits, load, past, losses))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("experts", "groups"), [(8, 2), (12, 3), (12, 1), (160, 8)])
def test_experts_of_a_group_share_a_cost(experts, groups, score):
    rule = {**RULE, "groups": groups, "score": score, "sequence": 40, "stretch": 20}
    logits, load, past, losses = operands(60, experts, 3)
    wide = (logits.double(), load, past.double())
    expected = reference.router_losses(*wide, losses.double(), **rule)
    found = balance.router_losses(logits, load, past, losses.clone(), **rule)
    require_close(found, expected, 1e-5, "losses")
    expected = reference.router_losses_dgrad(*wide, **rule)
    found = balance.router_losses_dgrad(logits, load, past, **rule)
    require_close(found, expected, 1e-5, "dlogits")


def test_sums_of_many_programs_are_added(monkeypatch):
    monkeypatch.setattr(balance, "_STEP", 2)
    rule = {**RULE, "groups": 1, "score": "softmax", "sequence": 1500, "stretch": 1500}
    logits, load, past, losses = operands(1500, 16, 1)
    wide = (logits.double(), load, past.double(), losses.double())
    found = balance.router_losses(logits, load, past, losses.clone(), **rule)
    require_close(found, reference.router_losses(*wide, **rule), 1e-5, "losses")


@pytest.mark.parametrize(("experts", "sequences"), [(1, 1), (60, 3), (512, 2)])
def test_loads_of_all_sequences_are_added_in_whole_numbers(experts, sequences):
    _, load, past, _ = operands(7, experts, sequences)
    load *= 2**20 + 1  # a sum that FP32 rounds once, not at every term
    expected = reference.add_load(load, past.clone())
    tally = past.clone()
    assert balance.add_load(load, tally) is tally
    assert torch.equal(tally, expected)
    assert not torch.equal(balance.add_load(load[1:], past.clone()), expected)

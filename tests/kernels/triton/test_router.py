"""Choices among as many experts as any model has: ties, keys below zero, and what is no number."""

import pytest
import torch
from torch import Tensor

from weft.ops import router as reference
from weft.testing.tolerance import require_close

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.triton import router

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS = 9  # no whole number of programs
SIZES = [(5, 2), (8, 8), (60, 6), (128, 8), (256, 8), (512, 1)]  # experts, top_k


def choose(logits: Tensor, bias: Tensor, **rule) -> tuple[Tensor, Tensor]:
    weights, chosen = router.select_experts(logits.to(DEVICE), bias.to(DEVICE), **rule)
    return weights.cpu(), chosen.cpu()


def operands(experts: int, bias: float) -> tuple[Tensor, Tensor]:
    """Logits of which many are equal, and biases that may change every choice."""
    generator = torch.Generator().manual_seed(experts)
    logits = torch.randint(-9, 9, (TOKENS, experts), generator=generator) / 4
    return logits, bias * torch.randint(-3, 3, (experts,), generator=generator)


@pytest.mark.parametrize("bias", [0.0, 7.0])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("experts", "top_k"), SIZES)
def test_the_best_are_chosen_and_of_equal_ones_the_lowest(experts, top_k, score, renormalise, bias):
    rule = {"top_k": top_k, "score": score, "renormalise": renormalise, "scaling": 2.5}
    logits, biases = operands(experts, bias)
    weights, chosen = choose(logits, biases, **rule)
    expected = reference.select_experts(logits, biases, **rule)
    assert torch.equal(chosen, expected[1])
    require_close(weights, expected[0].double(), 1e-6, "weights")


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("experts", "top_k"), SIZES)
def test_what_is_no_number_is_chosen_last(experts, top_k, score):
    rule = {"top_k": top_k, "score": score, "renormalise": False, "scaling": 1.0}
    logits, bias = operands(experts, 0.0)
    bias[1:4] = torch.tensor([-torch.inf, torch.nan, -0.0])
    logits[::2, 0] = torch.nan
    _, chosen = choose(logits, bias, **rule)
    keys = reference.score_experts(logits, score) + bias
    keys = keys.masked_fill(keys.isnan(), -torch.inf)
    expected = keys.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    assert torch.equal(chosen, expected)


def test_another_choice_among_equal_ones_is_seen():
    rule = {"top_k": 3, "score": "sigmoid", "renormalise": True, "scaling": 1.0}
    logits, bias = operands(60, 0.0)
    _, chosen = choose(logits.flip(-1), bias, **rule)
    assert not torch.equal(59 - chosen, reference.select_experts(logits, bias, **rule)[1])


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("experts", "top_k"), SIZES)
def test_gradients_of_any_choice_agree_with_float64(experts, top_k, score, renormalise):
    rule = {"top_k": top_k, "score": score, "renormalise": renormalise, "scaling": 2.5}
    generator = torch.Generator().manual_seed(top_k)
    logits = 2 * torch.randn(TOKENS, experts, generator=generator)
    chosen = torch.rand(TOKENS, experts, generator=generator).argsort(-1)[:, :top_k].contiguous()
    dweights = torch.randn(TOKENS, top_k, generator=generator)
    expected = reference.select_experts_dgrad(dweights.double(), logits.double(), chosen, **rule)
    moved = (x.to(DEVICE) for x in (dweights, logits, chosen))
    found = router.select_experts_dgrad(*moved, **rule).cpu()
    assert (found - expected).abs().max() <= 1e-5 * dweights.abs().max() * rule["scaling"]
    wrong = reference.select_experts_dgrad(
        dweights.double(), logits.double(), chosen.roll(1, 0), **rule
    )
    if experts > top_k > renormalise:  # one alone has its whole weight whatever its logit
        assert (found - wrong).abs().max() > 1e-3

"""The router's gradients keep sixteen binary digits of that of the logits, whatever the sizes."""

from functools import partial

import pytest
import torch

from weft.errors import VerificationError
from weft.graph.opset import OPS
from weft.ops import linear
from weft.testing.tolerance import gradient_bound, require_close

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.triton import router_product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NARROW = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter's bfloat16 is bits
KEPT = 2**-15  # two numbers of bfloat16 lose 2**-17 of one; sums over tokens in FP32 lose less
TOLERANCE = OPS["router_logits"].tolerance
SIZES = [(64, 4, 8), (200, 5, 40), (1, 16, 136), (65, 60, 24), (130, 128, 256), (70, 257, 8)]
SMALL = router_product.Tile(rows=16, columns=16, programs=12, warps=4, stages=2)


def operands(tokens, experts, width):
    maker = torch.Generator().manual_seed(tokens * experts + width)
    draw = partial(torch.randn, generator=maker)
    dlogits = draw(tokens, experts) * 10.0 ** -torch.arange(tokens).remainder(6)[:, None]
    w, h, acc = draw(experts, width), draw(tokens, width), draw(experts, width)
    return dlogits.to(DEVICE), w.to(DEVICE, NARROW), h.to(DEVICE, NARROW), acc.to(DEVICE)


@pytest.mark.parametrize("size", [*SIZES, (9, 513, 16)], ids=str)
def test_gradients_of_any_shape_agree_with_float64(size):
    dlogits, w, h, acc = operands(*size)
    found = router_product.router_logits_dgrad(dlogits, w)
    expected = dlogits.double() @ w.double()
    assert found.dtype == w.dtype
    require_close(found, expected, gradient_bound(TOLERANCE, w.dtype, size[1]), "dgrad")
    expected = acc.double() + dlogits.double().T @ h.double()
    made = router_product.router_logits_wgrad(acc, dlogits, h)
    assert made is acc
    require_close(acc, expected, KEPT, "wgrad")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_number_of_parts_and_tiles_is_one_sum(size):
    """More tiles than one either way, and parts of which the last is short."""
    dlogits, w, h, acc = operands(*size)
    expected = acc.double() + dlogits.double().T @ h.double()
    router_product.router_logits_wgrad_tiled(acc, dlogits, h, SMALL)
    require_close(acc, expected, KEPT, "wgrad")
    found = router_product.router_logits_dgrad_tiled(dlogits, w, SMALL)
    expected = dlogits.double() @ w.double()
    require_close(found, expected, gradient_bound(TOLERANCE, w.dtype, size[1]), "dgrad")


def test_two_runs_give_the_same_bits():
    dlogits, w, h, acc = operands(200, 60, 40)
    twice = [router_product.router_logits_wgrad(acc.clone(), dlogits, h) for _ in range(2)]
    assert torch.equal(*twice)
    assert torch.equal(*(router_product.router_logits_dgrad(dlogits, w) for _ in range(2)))


def test_logits_gradients_that_are_rounded_to_one_narrow_number_are_caught():
    """Sabotage: without the second half the sum over tokens is outside the bound."""
    dlogits, _, h, acc = operands(130, 128, 256)
    expected = acc.double() + dlogits.double().T @ h.double()
    router_product.router_logits_wgrad(acc, dlogits.to(NARROW).float(), h)
    with pytest.raises(VerificationError):
        require_close(acc, expected, KEPT, "wgrad")


def test_no_tokens_at_all_add_nothing():
    dlogits, w, h, acc = operands(0, 8, 16)
    before = acc.clone()
    assert router_product.router_logits_dgrad(dlogits, w).shape == (0, 16)
    assert torch.equal(router_product.router_logits_wgrad(acc, dlogits, h), before)


def test_the_bias_has_the_sum_over_tokens():
    dlogits, _, h, acc = operands(65, 60, 24)
    bias = torch.ones(60, device=DEVICE)
    expected = linear.project_wgrad(acc.double(), dlogits.double(), h.double())
    made = router_product.biased_router_logits_wgrad(acc, bias, dlogits, h)
    assert made == (acc, bias)
    require_close(acc, expected, KEPT, "w")
    require_close(bias, 1 + dlogits.double().sum(0), KEPT, "b")

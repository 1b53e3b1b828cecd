"""Choices among as many experts as any model has: ties, keys below zero, and what is no number."""

import subprocess
import sys

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


# A kernel that is interpreted cannot be compiled in the same process.
COMPILE = """
import re
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from weft.kernels.triton import router

for experts in (128, 256, 512):
    columns, rows = router.tile(experts, warps=1)
    constants = {"TOP_K": 8, "SLOTS": 8, "SOFTMAX": True, "RENORMALISE": True}
    constants |= {"ROWS": rows, "COLUMNS": columns}
    names = router._select.kernel.arg_names
    pointers = {"logits": "*fp32", "bias": "*fp32", "weights": "*fp32", "chosen": "*i64"}
    types = dict.fromkeys(names, "i32") | pointers | {"scaling": "fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, "experts")}
    source = ASTSource(router._select.kernel, types, constants, aligned)
    ptx = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["ptx"]
    print(rows, len(re.findall(r"redux.sync.m(?:ax|in).s32", ptx)), len(re.findall("shfl", ptx)))
"""


@pytest.mark.skipif(DEVICE == "cuda", reason="there it is compiled and run")
def test_for_a_gpu_each_choice_of_a_row_takes_two_instructions_of_its_warp(tmp_path):
    script = tmp_path / "compile_router.py"
    script.write_text(COMPILE)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        rows, whole, exchanges = map(int, line.split())
        assert whole == 2 * 8 * rows, line  # the largest key, and the lowest id that has it
        assert exchanges <= 16 * rows, line  # the softmax: two trees of five, and the weights' sum
    assert len(done.stdout.splitlines()) == 3

"""The router's choice and its gradient, one launch each.

A program is one warp and owns whole rows of the logits [T, E]: no warp waits for another. Choices
are found one after another: the largest key left, ties to the lowest id. A key that is no number is
never the largest, so every id is legal.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.grid import cdiv, next_power_of_2
from weft.kernels.launch import launched

_CELLS = 512  # elements of a warp's tile: 16 for each of 32 threads
_TAKEN = tl.constexpr(-(2**31))  # below the number of every key


def select_experts(
    logits: Tensor, bias: Tensor, *, top_k: int, score: str, renormalise: bool, scaling: float
) -> tuple[Tensor, Tensor]:
    """Returns the weights and ids of each token's experts, best first."""
    tokens, experts = logits.shape
    weights = logits.new_empty(tokens, top_k)
    chosen = torch.empty(tokens, top_k, dtype=torch.int64, device=logits.device)
    columns, rows = tile(experts, warps=1)
    if tokens:
        _select[cdiv(tokens, rows),](
            logits, bias, weights, chosen, tokens, experts, scaling,
            TOP_K=top_k, SLOTS=next_power_of_2(top_k), SOFTMAX=score == "softmax",
            RENORMALISE=renormalise, ROWS=rows, COLUMNS=columns, num_warps=1,
        )  # fmt: skip
    return weights, chosen


def select_experts_dgrad(
    dweights: Tensor,
    logits: Tensor,
    experts: Tensor,
    *,
    top_k: int,
    score: str,
    renormalise: bool,
    scaling: float,
) -> Tensor:
    """Returns the gradient of the logits, of chosen and replayed experts alike."""
    dlogits = torch.empty_like(logits)
    tokens, width = logits.shape
    columns, rows = tile(width, warps=1)
    if tokens:
        _select_dgrad[cdiv(tokens, rows),](
            dweights, logits, experts, dlogits, tokens, width, scaling,
            TOP_K=top_k, SOFTMAX=score == "softmax", RENORMALISE=renormalise,
            ROWS=rows, COLUMNS=columns, num_warps=1,
        )  # fmt: skip
    return dlogits


def tile(experts: int, *, warps: int) -> tuple[int, int]:
    """The columns and the rows of a program."""
    columns = next_power_of_2(experts)
    return columns, max(warps * _CELLS // columns, 1)


@triton.jit
def scores_of(x, inside, SOFTMAX: tl.constexpr):
    """Scores of rows of logits; 0 outside."""
    top, whole = _top_and_whole(x, inside, SOFTMAX)
    return tl.where(inside, _score(x, top, whole, SOFTMAX), 0.0)


@triton.jit
def _top_and_whole(x, inside, SOFTMAX: tl.constexpr):
    """What a softmax asks of a whole row: its largest logit, and the sum of exponentials."""
    if SOFTMAX:
        top = tl.max(tl.where(inside, x, float("-inf")), axis=1)[:, None]
        return top, tl.sum(tl.where(inside, tl.exp(x - top), 0.0), axis=1)[:, None]
    else:  # noqa: RET505 - one of two functions, chosen when the kernel is compiled
        return 0.0, 1.0


@triton.jit
def _score(x, top, whole, SOFTMAX: tl.constexpr):
    if SOFTMAX:
        return tl.exp(x - top) / whole
    else:  # noqa: RET505 - one of two functions, chosen when the kernel is compiled
        return tl.sigmoid(x)


@triton.jit
def _ordered(key):
    """Whole numbers in the order of the keys, all of them above that of a taken one.

    A warp finds the largest whole number in one instruction, and a float in five exchanges.
    """
    bits = key.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)  # of a negative one, all but the sign


@launched
@triton.jit
def _select(
    logits, bias, weights, chosen, tokens, experts, scaling,
    TOP_K: tl.constexpr, SLOTS: tl.constexpr, SOFTMAX: tl.constexpr, RENORMALISE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    present = (c < experts)[None, :]
    inside = (r < tokens)[:, None] & present
    at = r.to(tl.int64)[:, None] * experts + c[None, :]
    x = tl.load(logits + at, mask=inside, other=0.0)
    top, whole = _top_and_whole(x, present, SOFTMAX)
    key = _score(x, top, whole, SOFTMAX)
    key += tl.load(bias + c, mask=c < experts, other=0.0)[None, :]
    key = tl.where(present & (key == key), key, float("-inf"))  # NaN is never the largest
    left = tl.where(present, _ordered(key), _TAKEN)
    slot = tl.arange(0, SLOTS)[None, :]
    picked = tl.zeros((ROWS, SLOTS), tl.int32)
    for j in tl.static_range(TOP_K):
        best = tl.max(left, axis=1)[:, None]
        pick = tl.min(tl.where(left == best, c[None, :], COLUMNS), axis=1)[:, None]
        picked = tl.where(slot == j, pick, picked)
        left = tl.where(c[None, :] == pick, _TAKEN, left)
    kept = (r < tokens)[:, None] & (slot < TOP_K)
    own = tl.load(logits + r.to(tl.int64)[:, None] * experts + picked, mask=kept, other=0.0)
    weight = tl.where(slot < TOP_K, _score(own, top, whole, SOFTMAX), 0.0)
    if RENORMALISE:
        weight /= tl.sum(weight, axis=1)[:, None]
    out = r.to(tl.int64)[:, None] * TOP_K + slot
    tl.store(chosen + out, picked.to(tl.int64), mask=kept)
    tl.store(weights + out, weight * scaling, mask=kept)


@launched
@triton.jit
def _select_dgrad(
    dweights, logits, experts, dlogits, tokens, width, scaling,
    TOP_K: tl.constexpr, SOFTMAX: tl.constexpr, RENORMALISE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    present = (c < width)[None, :]
    inside = (r < tokens)[:, None] & present
    at = r.to(tl.int64)[:, None] * width + c[None, :]
    score = scores_of(tl.load(logits + at, mask=inside, other=0.0), present, SOFTMAX)
    grad = tl.zeros((ROWS, COLUMNS), tl.float32)
    taken = tl.zeros((ROWS, COLUMNS), tl.float32)
    for j in tl.static_range(TOP_K):
        where = r.to(tl.int64) * TOP_K + j
        pick = tl.load(experts + where, mask=r < tokens, other=-1).to(tl.int32)
        d = tl.load(dweights + where, mask=r < tokens, other=0.0) * scaling
        here = c[None, :] == pick[:, None]
        grad += tl.where(here, d[:, None], 0.0)
        taken += tl.where(here, 1.0, 0.0)
    if RENORMALISE:
        total = tl.sum(taken * score, axis=1)[:, None]
        dot = tl.sum(grad * score, axis=1)[:, None]
        whole = tl.where(total == 0.0, 1.0, total)
        grad = (grad - taken * (dot / whole)) / whole
    if SOFTMAX:
        grad = score * (grad - tl.sum(grad * score, axis=1)[:, None])
    else:
        grad *= score * (1 - score)
    tl.store(dlogits + at, grad, mask=inside)

"""The losses that keep the load even, and their gradient: two launches and one. The tally of loads.

A program owns whole rows of the logits [T, E]. What a unit of an expert's probability costs is
worked out anew by each of them, from loads that all of them share. Sums of programs are added in
their order by one more program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.grid import cdiv, next_power_of_2
from weft.kernels.launch import launched
from weft.kernels.triton.router import scores_of, tile

_STEP = 1024  # sums of programs that are added at a time


def add_load(load: Tensor, tally: Tensor) -> Tensor:
    """Adds the load of all sequences to the running tally."""
    sequences, experts = load.shape
    columns = next_power_of_2(experts)
    _add_sequences[1,](load, tally, sequences, experts, COLUMNS=columns, num_warps=4)
    return tally


def router_losses(
    logits: Tensor,
    load: Tensor,
    past: Tensor,
    losses: Tensor,
    *,
    top_k: int,
    score: str,
    aux_coef: float,
    device_coef: float,
    sequence_coef: float,
    global_coef: float,
    groups: int,
    z_coef: float,
    first: int,
    sequence: int,
    stretch: int,
    scale: float,
) -> Tensor:
    """Adds the balance loss and the z loss of these tokens to `losses`.

    Shapes:
        logits [T, E], load [B, E], past [E], losses [2]

    Numerics:
        FP32; sums of a program pairwise, programs in their order.
    """
    columns, rows = tile(logits.shape[1], warps=4)
    programs = cdiv(logits.shape[0], rows)
    partial = torch.empty(programs, 2, dtype=torch.float32, device=logits.device)
    place = {"first": first, "sequence": sequence, "stretch": stretch, "top_k": top_k}
    coefs = (aux_coef, device_coef, sequence_coef, global_coef)
    if programs:
        _sum_losses[programs,](
            logits, load, past, partial, *_costing(logits, load, coefs, groups, **place),
            GROUPED=device_coef > 0, SEQUENCED=sequence_coef > 0, SOFTMAX=score == "softmax",
            ROWS=rows, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
    share = scale / (load.shape[0] * sequence)
    _add_losses[1,](partial, losses, programs, share, share * z_coef, STEP=_STEP, num_warps=4)
    return losses


def router_losses_dgrad(
    logits: Tensor,
    load: Tensor,
    past: Tensor,
    *,
    top_k: int,
    score: str,
    aux_coef: float,
    device_coef: float,
    sequence_coef: float,
    global_coef: float,
    groups: int,
    z_coef: float,
    first: int,
    sequence: int,
    stretch: int,
    scale: float,
) -> Tensor:
    """Returns the gradient of the sum of both losses."""
    dlogits = torch.empty_like(logits)
    columns, rows = tile(logits.shape[1], warps=4)
    programs = cdiv(logits.shape[0], rows)
    place = {"first": first, "sequence": sequence, "stretch": stretch, "top_k": top_k}
    coefs = (aux_coef, device_coef, sequence_coef, global_coef)
    share = scale / (load.shape[0] * sequence)
    if programs:
        _losses_dgrad[programs,](
            logits, load, past, dlogits, *_costing(logits, load, coefs, groups, **place),
            share, 2 * share * z_coef,
            GROUPED=device_coef > 0, SEQUENCED=sequence_coef > 0, SOFTMAX=score == "softmax",
            ROWS=rows, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
    return dlogits


def _costing(
    logits: Tensor,
    load: Tensor,
    coefs: tuple[float, ...],
    groups: int,
    *,
    top_k: int,
    first: int,
    sequence: int,
    stretch: int,
) -> tuple[float, ...]:
    """What `_costs` is told besides tensors, and the first numbers of a kernel."""
    (tokens, experts), sequences = logits.shape, load.shape[0]
    over = experts / (sequence * top_k)  # a load over an even one
    return (tokens, experts, sequences, first, stretch, over, *coefs, experts // groups)


@launched
@triton.jit
def _add_sequences(load, tally, sequences, experts, COLUMNS: tl.constexpr):
    c = tl.arange(0, COLUMNS)
    inside = c < experts
    total = tl.zeros((COLUMNS,), tl.int64)
    for b in range(sequences):
        total += tl.load(load + b * experts + c, mask=inside, other=0)
    kind = tally.dtype.element_ty
    sums = tl.load(tally + c, mask=inside, other=0.0) + total.to(kind)
    tl.store(tally + c, sums, mask=inside)


@triton.jit
def _costs(
    load, past, r, c, tokens, experts, sequences, first, stretch,
    over, aux_coef, device_coef, sequence_coef, global_coef, group,
    GROUPED: tl.constexpr, SEQUENCED: tl.constexpr,
):  # fmt: skip
    """What a unit of each expert's probability costs each of these tokens; 0 outside.

    One row for all of them where sequences have no cost of their own.
    """
    inside = c < experts
    total = tl.zeros_like(c).to(tl.float32)
    for b in range(sequences):
        total += tl.load(load + b * experts + c, mask=inside, other=0).to(tl.float32)
    whole = total * (over / sequences)
    shared = aux_coef * whole + global_coef * tl.load(past + c, mask=inside, other=0.0)
    if GROUPED:
        for start in range(0, experts, group):
            member = inside & (c >= start) & (c < start + group)
            mean = tl.sum(tl.where(member, whole, 0.0), axis=0) / group
            shared += tl.where(member, device_coef * mean, 0.0)
    if SEQUENCED:
        sequence = (first + r) // stretch
        own = tl.load(
            load + sequence[:, None] * experts + c[None, :],
            mask=(r < tokens)[:, None] & inside[None, :], other=0,
        ).to(tl.float32)  # fmt: skip
        return shared[None, :] + own * (over * sequence_coef)
    else:  # noqa: RET505 - one of two functions, chosen when the kernel is compiled
        return shared[None, :]


@triton.jit
def _log_sum(x, present):
    """The logarithm of the sum of exponentials of each row."""
    top = tl.max(tl.where(present, x, float("-inf")), axis=1)
    return top + tl.log(tl.sum(tl.where(present, tl.exp(x - top[:, None]), 0.0), axis=1))


@launched
@triton.jit
def _sum_losses(
    logits, load, past, partial, tokens, experts, sequences, first, stretch,
    over, aux_coef, device_coef, sequence_coef, global_coef, group,
    GROUPED: tl.constexpr, SEQUENCED: tl.constexpr, SOFTMAX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    r = program * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    present = (c < experts)[None, :]
    inside = (r < tokens)[:, None] & present
    at = r.to(tl.int64)[:, None] * experts + c[None, :]
    x = tl.load(logits + at, mask=inside, other=0.0)
    p = scores_of(x, present, SOFTMAX)
    if not SOFTMAX:
        p /= tl.sum(p, axis=1)[:, None]
    cost = _costs(
        load, past, r, c, tokens, experts, sequences, first, stretch,
        over, aux_coef, device_coef, sequence_coef, global_coef, group,
        GROUPED, SEQUENCED,
    )  # fmt: skip
    lse = _log_sum(x, present)
    tl.store(partial + 2 * program, tl.sum(tl.sum(tl.where(inside, p * cost, 0.0), axis=1), axis=0))
    tl.store(partial + 2 * program + 1, tl.sum(tl.where(r < tokens, lse * lse, 0.0), axis=0))


@launched
@triton.jit
def _add_losses(partial, losses, programs, aux_scale, z_scale, STEP: tl.constexpr):
    aux = tl.zeros((STEP,), tl.float32)
    z = tl.zeros((STEP,), tl.float32)
    for start in range(0, programs, STEP):
        i = start + tl.arange(0, STEP)
        aux += tl.load(partial + 2 * i, mask=i < programs, other=0.0)
        z += tl.load(partial + 2 * i + 1, mask=i < programs, other=0.0)
    tl.store(losses, tl.load(losses) + tl.sum(aux, axis=0) * aux_scale)
    tl.store(losses + 1, tl.load(losses + 1) + tl.sum(z, axis=0) * z_scale)


@launched
@triton.jit
def _losses_dgrad(
    logits, load, past, dlogits, tokens, experts, sequences, first, stretch,
    over, aux_coef, device_coef, sequence_coef, global_coef, group, scale, z_scale,
    GROUPED: tl.constexpr, SEQUENCED: tl.constexpr, SOFTMAX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    present = (c < experts)[None, :]
    inside = (r < tokens)[:, None] & present
    at = r.to(tl.int64)[:, None] * experts + c[None, :]
    x = tl.load(logits + at, mask=inside, other=0.0)
    p = scores_of(x, present, SOFTMAX)
    if not SOFTMAX:
        p /= tl.sum(p, axis=1)[:, None]
    dp = scale * _costs(
        load, past, r, c, tokens, experts, sequences, first, stretch,
        over, aux_coef, device_coef, sequence_coef, global_coef, group,
        GROUPED, SEQUENCED,
    )  # fmt: skip
    grad = p * (dp - tl.sum(p * dp, axis=1)[:, None])
    if not SOFTMAX:
        grad *= 1 - tl.sigmoid(x)
    lse = _log_sum(x, present)[:, None]
    tl.store(dlogits + at, grad + tl.exp(x - lse) * lse * z_scale, mask=inside)

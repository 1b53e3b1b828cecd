"""Rotary positions with and without QK norm, one program a token.

Channels pair as (c, c + C/2); both halves of a head are in one program, so nothing is moved but
what is read and written. The columns of `qkv` are [query heads | key heads | value heads].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.triton.norm import add_partial_sums

_PARTS = 264  # of the tokens, each with its own partial sum: two a multiprocessor of an H200


def rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, *, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns rotated queries and keys, and values as a view.

    Shapes:
        qkv [T, Q] -> q [T, H, C], k [T, G, C], v [T, G, C]
    """
    q, k, v, _ = _forward(qkv, None, None, cos, sin, heads, kv_heads, 0.0)
    return q, k, v


def norm_rotate(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns normalised, rotated queries and keys, values as a view, and the norms' rstd.

    Shapes:
        rstd [T, H + G]: one a query head, then one a key head.
    """
    return _forward(qkv, q_norm, k_norm, cos, sin, heads, kv_heads, eps)


def rotate_dgrad(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, *, heads: int, kv_heads: int
) -> Tensor:
    """Returns the gradient of `qkv`."""
    return _backward(dq, dk, dv, None, None, None, None, cos, sin)


def norm_rotate_dgrad(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rstd: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    kv_heads: int,
    eps: float,
) -> Tensor:
    """Returns the gradient of `qkv`, through the rotation and both norms."""
    return _backward(dq, dk, dv, qkv, q_norm, k_norm, rstd, cos, sin)


def norm_rotate_wgrad(
    q_acc: Tensor,
    k_acc: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    rstd: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of both norms' weights into their accumulators."""
    _weight(q_acc, dq, qkv, rstd, cos, sin, 0)
    _weight(k_acc, dk, qkv, rstd, cos, sin, heads)
    return q_acc, k_acc


def _forward(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    qkv = qkv.contiguous()
    tokens, turning = qkv.shape[0], heads + kv_heads
    channels = qkv.shape[1] // (turning + kv_heads)
    turned = qkv.new_empty(tokens, turning, channels)
    rstd = torch.empty(tokens, turning, dtype=torch.float32, device=qkv.device)
    if tokens:
        _turn[tokens,](
            qkv, q_norm, k_norm, cos, sin, turned, rstd, qkv.shape[1], heads, turning, eps,
            NORM=q_norm is not None, HEADS=triton.next_power_of_2(turning),
            HALF=channels // 2, num_warps=4,
        )  # fmt: skip
    values = qkv.unflatten(-1, (turning + kv_heads, channels))[:, turning:]
    return turned[:, :heads], turned[:, heads:], values, rstd


def _backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    rstd: Tensor | None,
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    tokens, heads, channels = dq.shape
    kv_heads = dk.shape[1]
    every = heads + 2 * kv_heads
    dqkv = dq.new_empty(tokens, every * channels)
    dq, dk, dv = (_dense_heads(x) for x in (dq, dk, dv))
    if tokens:
        _turn_back[tokens,](
            dq, dk, dv, qkv, q_norm, k_norm, rstd, cos, sin, dqkv,
            dq.stride(0), dk.stride(0), dv.stride(0), heads, kv_heads,
            NORM=qkv is not None, HEADS=triton.next_power_of_2(every),
            HALF=channels // 2, num_warps=4,
        )  # fmt: skip
    return dqkv


def _weight(
    acc: Tensor, dy: Tensor, qkv: Tensor, rstd: Tensor, cos: Tensor, sin: Tensor, first: int
) -> None:
    tokens, heads, channels = dy.shape
    if tokens == 0:
        return
    dy = _dense_heads(dy)
    parts = min(_PARTS, tokens)
    partial = rstd.new_empty(parts, channels)
    _norm_weight[parts,](
        dy, qkv, rstd, cos, sin, partial, dy.stride(0), qkv.stride(0), rstd.stride(0),
        tokens, heads, first, triton.cdiv(tokens, parts),
        HEADS=triton.next_power_of_2(heads), HALF=channels // 2, num_warps=4,
    )  # fmt: skip
    add_partial_sums(acc, partial)


def _dense_heads(x: Tensor) -> Tensor:
    """The heads of a token next to each other, tokens wherever they are."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


@triton.jit
def _turn(
    qkv, q_norm, k_norm, cos, sin, turned, rstd, stride, heads, turning, eps,
    NORM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)
    c = tl.arange(0, HALF)
    at = head[:, None] * (2 * HALF) + c[None, :]
    inside = (head < turning)[:, None] & (c < HALF)[None, :]
    a = tl.load(qkv + token * stride + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(qkv + token * stride + at + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        mean = (tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * HALF)
        inverse = tl.rsqrt(mean + eps)
        tl.store(rstd + token * turning + head, inverse, mask=head < turning)
        is_query = (head < heads)[:, None]
        low = tl.where(is_query, tl.load(q_norm + c)[None, :], tl.load(k_norm + c)[None, :])
        high = tl.where(
            is_query, tl.load(q_norm + HALF + c)[None, :], tl.load(k_norm + HALF + c)[None, :]
        )
        a *= inverse[:, None] * low
        b *= inverse[:, None] * high
    angle = token * (2 * HALF) + c  # the table holds every angle twice
    cosine, sine = tl.load(cos + angle)[None, :], tl.load(sin + angle)[None, :]
    out = turned + token * turning * (2 * HALF) + at
    tl.store(out, a * cosine - b * sine, mask=inside)
    tl.store(out + HALF, b * cosine + a * sine, mask=inside)


@triton.jit
def _turn_back(
    dq, dk, dv, qkv, q_norm, k_norm, rstd, cos, sin, dqkv,
    q_stride, k_stride, v_stride, heads, kv_heads,
    NORM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)
    c = tl.arange(0, HALF)
    turning = heads + kv_heads
    is_query = head < heads
    inside = (head < turning + kv_heads)[:, None] & (c < HALF)[None, :]
    a, b = _grad_halves(dq + token * q_stride, head, 0, heads, c, HALF)
    ka, kb = _grad_halves(dk + token * k_stride, head, heads, turning, c, HALF)
    va, vb = _grad_halves(dv + token * v_stride, head, turning, turning + kv_heads, c, HALF)
    a += ka
    b += kb
    angle = token * (2 * HALF) + c
    cosine, sine = tl.load(cos + angle)[None, :], tl.load(sin + angle)[None, :]
    da = a * cosine + b * sine + va
    db = b * cosine - a * sine + vb
    at = token * (turning + kv_heads) * (2 * HALF) + head[:, None] * (2 * HALF) + c[None, :]
    if NORM:
        normed = (head < turning)[:, None]
        low = tl.where(
            is_query[:, None], tl.load(q_norm + c)[None, :], tl.load(k_norm + c)[None, :]
        )
        high = tl.where(
            is_query[:, None],
            tl.load(q_norm + HALF + c)[None, :],
            tl.load(k_norm + HALF + c)[None, :],
        )
        x = tl.load(qkv + at, mask=inside & normed, other=0.0).to(tl.float32)
        y = tl.load(qkv + at + HALF, mask=inside & normed, other=0.0).to(tl.float32)
        inverse = tl.load(rstd + token * turning + head, mask=head < turning, other=0.0)
        ga, gb = da * low, db * high
        dot = tl.sum(ga * x, axis=1) + tl.sum(gb * y, axis=1)
        share = (dot * inverse * inverse / (2 * HALF))[:, None]
        da = tl.where(normed, inverse[:, None] * (ga - x * share), da)
        db = tl.where(normed, inverse[:, None] * (gb - y * share), db)
    tl.store(dqkv + at, da, mask=inside)
    tl.store(dqkv + at + HALF, db, mask=inside)


@triton.jit
def _grad_halves(source, head, first, last, c, HALF: tl.constexpr):
    """The two halves of the heads [first, last) of a token; 0 for every other head."""
    inside = ((head >= first) & (head < last))[:, None] & (c < HALF)[None, :]
    at = (head - first)[:, None] * (2 * HALF) + c[None, :]
    low = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    return low, tl.load(source + at + HALF, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _norm_weight(
    dy, qkv, rstd, cos, sin, partial, y_stride, x_stride, rstd_stride,
    tokens, heads, first, share,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    head = tl.arange(0, HEADS)
    c = tl.arange(0, HALF)
    inside = (head < heads)[:, None] & (c < HALF)[None, :]
    at = head[:, None] * (2 * HALF) + c[None, :]
    low = tl.zeros((HEADS, HALF), tl.float32)
    high = tl.zeros((HEADS, HALF), tl.float32)
    begin = part * share
    for t in range(begin, tl.minimum(begin + share, tokens)):
        token = tl.cast(t, tl.int64)
        a = tl.load(dy + token * y_stride + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(dy + token * y_stride + at + HALF, mask=inside, other=0.0).to(tl.float32)
        angle = token * (2 * HALF) + c
        cosine, sine = tl.load(cos + angle)[None, :], tl.load(sin + angle)[None, :]
        source = qkv + token * x_stride + first * (2 * HALF) + at
        x = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
        wide = rstd + token * rstd_stride + first + head
        inverse = tl.load(wide, mask=head < heads, other=0.0)[:, None]
        low += (a * cosine + b * sine) * x * inverse
        high += (b * cosine - a * sine) * y * inverse
    out = partial + part.to(tl.int64) * (2 * HALF)
    tl.store(out + c, tl.sum(low, axis=0))
    tl.store(out + HALF + c, tl.sum(high, axis=0))

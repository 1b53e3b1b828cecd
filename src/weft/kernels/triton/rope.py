"""Rotary positions with and without QK norm, one program a token.

The channels of a head lie in three blocks: the two halves of those that turn, paired channel by
channel, and the rest, which may be none. All of a head is in one program, so nothing is moved but
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
            **_blocks(channels, cos), num_warps=4,
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
            **_blocks(channels, cos), num_warps=4,
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
        HEADS=triton.next_power_of_2(heads), **_blocks(channels, cos), num_warps=4,
    )  # fmt: skip
    add_partial_sums(acc, partial)


def _blocks(channels: int, cos: Tensor) -> dict[str, int]:
    """The channels of a head, those of a half that turns, and powers of two above half and rest."""
    half = cos.shape[1] // 2
    rest = channels - 2 * half
    blocks = {"BLOCK": triton.next_power_of_2(half), "REST": triton.next_power_of_2(max(rest, 1))}
    return {"CHANNELS": channels, "HALF": half, **blocks}


def _dense_heads(x: Tensor) -> Tensor:
    """The heads of a token next to each other, tokens wherever they are."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


@triton.jit
def _turn(
    qkv, q_norm, k_norm, cos, sin, turned, rstd, stride, heads, turning, eps,
    NORM: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)
    c, d = tl.arange(0, BLOCK), 2 * HALF + tl.arange(0, REST)
    present = (head < turning)[:, None]
    half, rest = present & (c < HALF)[None, :], present & (d < CHANNELS)[None, :]
    at = head[:, None] * CHANNELS
    source = qkv + token * stride + at
    a = tl.load(source + c[None, :], mask=half, other=0.0).to(tl.float32)
    b = tl.load(source + HALF + c[None, :], mask=half, other=0.0).to(tl.float32)
    r = tl.load(source + d[None, :], mask=rest, other=0.0).to(tl.float32)
    if NORM:
        square = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1) + tl.sum(r * r, axis=1)
        inverse = tl.rsqrt(square / CHANNELS + eps)
        tl.store(rstd + token * turning + head, inverse, mask=head < turning)
        is_query = (head < heads)[:, None]
        a *= inverse[:, None] * _weights(q_norm, k_norm, is_query, c, HALF)
        b *= inverse[:, None] * _weights(q_norm, k_norm, is_query, HALF + c, 2 * HALF)
        r *= inverse[:, None] * _weights(q_norm, k_norm, is_query, d, CHANNELS)
    cosine, sine = _angles(cos, sin, token, c, HALF)
    out = turned + token * turning * CHANNELS + at
    tl.store(out + c[None, :], a * cosine - b * sine, mask=half)
    tl.store(out + HALF + c[None, :], b * cosine + a * sine, mask=half)
    tl.store(out + d[None, :], r, mask=rest)


@triton.jit
def _turn_back(
    dq, dk, dv, qkv, q_norm, k_norm, rstd, cos, sin, dqkv,
    q_stride, k_stride, v_stride, heads, kv_heads,
    NORM: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)
    c, d = tl.arange(0, BLOCK), 2 * HALF + tl.arange(0, REST)
    turning = heads + kv_heads
    every = turning + kv_heads
    q, k, v = dq + token * q_stride, dk + token * k_stride, dv + token * v_stride
    a = _of(q, head, 0, heads, c, HALF, CHANNELS) + _of(k, head, heads, turning, c, HALF, CHANNELS)
    e = HALF + c
    b = _of(q, head, 0, heads, e, 2 * HALF, CHANNELS)
    b += _of(k, head, heads, turning, e, 2 * HALF, CHANNELS)
    r = _of(q, head, 0, heads, d, CHANNELS, CHANNELS)
    r += _of(k, head, heads, turning, d, CHANNELS, CHANNELS)
    cosine, sine = _angles(cos, sin, token, c, HALF)
    da, db = a * cosine + b * sine, b * cosine - a * sine
    if NORM:
        row = qkv + token * every * CHANNELS
        x = _of(row, head, 0, turning, c, HALF, CHANNELS)
        y = _of(row, head, 0, turning, e, 2 * HALF, CHANNELS)
        z = _of(row, head, 0, turning, d, CHANNELS, CHANNELS)
        inverse = tl.load(rstd + token * turning + head, mask=head < turning, other=0.0)
        is_query = (head < heads)[:, None]
        da *= _weights(q_norm, k_norm, is_query, c, HALF)
        db *= _weights(q_norm, k_norm, is_query, e, 2 * HALF)
        r *= _weights(q_norm, k_norm, is_query, d, CHANNELS)
        dot = tl.sum(da * x, axis=1) + tl.sum(db * y, axis=1) + tl.sum(r * z, axis=1)
        share = (dot * inverse * inverse / CHANNELS)[:, None]
        da = inverse[:, None] * (da - x * share)
        db = inverse[:, None] * (db - y * share)
        r = inverse[:, None] * (r - z * share)
    da += _of(v, head, turning, every, c, HALF, CHANNELS)
    db += _of(v, head, turning, every, e, 2 * HALF, CHANNELS)
    r += _of(v, head, turning, every, d, CHANNELS, CHANNELS)
    out = dqkv + token * every * CHANNELS + head[:, None] * CHANNELS
    half = (head < every)[:, None] & (c < HALF)[None, :]
    tl.store(out + c[None, :], da, mask=half)
    tl.store(out + e[None, :], db, mask=half)
    tl.store(out + d[None, :], r, mask=(head < every)[:, None] & (d < CHANNELS)[None, :])


@triton.jit
def _of(source, head, first, last, c, limit, CHANNELS: tl.constexpr):
    """The channels c below a limit of the heads [first, last) of a token; 0 everywhere else."""
    inside = ((head >= first) & (head < last))[:, None] & (c < limit)[None, :]
    at = (head - first)[:, None] * CHANNELS + c[None, :]
    return tl.load(source + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _weights(q_norm, k_norm, is_query, c, limit):
    """The weights of the norm at some channels, those of queries or of keys by head."""
    of_query = tl.load(q_norm + c, mask=c < limit, other=0.0)[None, :]
    of_key = tl.load(k_norm + c, mask=c < limit, other=0.0)[None, :]
    return tl.where(is_query, of_query, of_key).to(tl.float32)


@triton.jit
def _angles(cos, sin, token, c, HALF: tl.constexpr):
    """Cosine and sine of a token's angles, of which the table holds each twice."""
    at = token * (2 * HALF) + c
    cosine = tl.load(cos + at, mask=c < HALF, other=0.0)
    return cosine[None, :], tl.load(sin + at, mask=c < HALF, other=0.0)[None, :]


@triton.jit
def _norm_weight(
    dy, qkv, rstd, cos, sin, partial, y_stride, x_stride, rstd_stride,
    tokens, heads, first, share,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    head = tl.arange(0, HEADS)
    c, d = tl.arange(0, BLOCK), 2 * HALF + tl.arange(0, REST)
    low = tl.zeros((HEADS, BLOCK), tl.float32)
    high = tl.zeros((HEADS, BLOCK), tl.float32)
    still = tl.zeros((HEADS, REST), tl.float32)
    begin = part * share
    for t in range(begin, tl.minimum(begin + share, tokens)):
        token = tl.cast(t, tl.int64)
        grad, x = dy + token * y_stride, qkv + token * x_stride + first * CHANNELS
        a = _of(grad, head, 0, heads, c, HALF, CHANNELS)
        b = _of(grad, head, 0, heads, HALF + c, 2 * HALF, CHANNELS)
        cosine, sine = _angles(cos, sin, token, c, HALF)
        wide = rstd + token * rstd_stride + first + head
        inverse = tl.load(wide, mask=head < heads, other=0.0)[:, None]
        low += (a * cosine + b * sine) * _of(x, head, 0, heads, c, HALF, CHANNELS) * inverse
        y = _of(x, head, 0, heads, HALF + c, 2 * HALF, CHANNELS)
        high += (b * cosine - a * sine) * y * inverse
        r = _of(grad, head, 0, heads, d, CHANNELS, CHANNELS)
        still += r * _of(x, head, 0, heads, d, CHANNELS, CHANNELS) * inverse
    out = partial + part.to(tl.int64) * CHANNELS
    tl.store(out + c, tl.sum(low, axis=0), mask=c < HALF)
    tl.store(out + HALF + c, tl.sum(high, axis=0), mask=c < HALF)
    tl.store(out + d, tl.sum(still, axis=0), mask=d < CHANNELS)

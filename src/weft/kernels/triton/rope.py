"""Rotary positions with and without QK norm, one program a token.

The channels of a head lie in three blocks: the two halves of those that turn, paired channel by
channel, and the rest, which may be none. All of a head is in one program, so nothing is moved but
what is read and written. The columns of `qkv` are [query heads | key heads | value heads]; queries
and keys are two tiles of a program, each as high as its own heads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.grid import cdiv, next_power_of_2
from weft.kernels.launch import launched
from weft.kernels.triton.norm import add_partial_sums

_PARTS = 528  # of the tokens, each with its own partial sums: four a multiprocessor of an H200
_FETCHED = 128 * 128  # channels of a token of which two more fit into shared memory
_A_WARP = 2048  # channels of a token in a warp's registers


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
    tokens, _, channels = dq.shape
    if tokens == 0:
        return q_acc, k_acc
    dq, dk, qkv = _dense_heads(dq), _dense_heads(dk), qkv.contiguous()
    parts = min(_PARTS, tokens)
    partial = rstd.new_empty(2, parts, channels)
    _norm_weight[parts,](
        dq, dk, qkv, rstd, cos, sin, partial, dq.stride(0), dk.stride(0), qkv.stride(0),
        tokens, heads, kv_heads, parts, cdiv(tokens, parts),
        **_heads(heads, kv_heads), **_blocks(channels, cos), **_walk(channels, heads, kv_heads),
    )  # fmt: skip
    of_query, of_key = partial
    return add_partial_sums(q_acc, of_query), add_partial_sums(k_acc, of_key)


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
            qkv, q_norm, k_norm, cos, sin, turned, rstd, qkv.shape[1], heads, kv_heads, eps,
            NORM=q_norm is not None, **_heads(heads, kv_heads),
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
    dqkv = dq.new_empty(tokens, (heads + 2 * kv_heads) * channels)
    dq, dk, dv = (_dense_heads(x) for x in (dq, dk, dv))
    if tokens:
        _turn_back[tokens,](
            dq, dk, dv, qkv, q_norm, k_norm, rstd, cos, sin, dqkv,
            dq.stride(0), dk.stride(0), dv.stride(0), heads, kv_heads,
            NORM=qkv is not None, **_heads(heads, kv_heads),
            **_blocks(channels, cos), num_warps=4,
        )  # fmt: skip
    return dqkv


def _heads(heads: int, kv_heads: int) -> dict[str, int]:
    """Powers of two above the heads of queries and of keys."""
    powers = next_power_of_2(heads), next_power_of_2(kv_heads)
    return dict(zip(("HEADS", "KV_HEADS"), powers, strict=True))


def _walk(channels: int, heads: int, kv_heads: int) -> dict[str, int]:
    """The warps of a part, and how many of its tokens are on their way at a time."""
    held = channels * sum(_heads(heads, kv_heads).values())
    warps = next_power_of_2(cdiv(held, _A_WARP))
    return {"STAGES": 3 if held <= _FETCHED else 1, "num_warps": min(max(warps, 4), 16)}


def _blocks(channels: int, cos: Tensor) -> dict[str, int]:
    """The channels of a head, those of a half that turns, and powers of two above half and rest."""
    half = cos.shape[1] // 2
    rest = channels - 2 * half
    blocks = {"BLOCK": next_power_of_2(half), "REST": next_power_of_2(max(rest, 1))}
    return {"CHANNELS": channels, "HALF": half, **blocks}


def _dense_heads(x: Tensor) -> Tensor:
    """The heads of a token next to each other, tokens wherever they are."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


@launched
@triton.jit
def _turn(
    qkv, q_norm, k_norm, cos, sin, turned, rstd, stride, heads, kv_heads, eps,
    NORM: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    HALF: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    turning = heads + kv_heads
    row, out, inverse = qkv + token * stride, turned + token * turning * CHANNELS, token * turning
    cosine, sine = _angles(cos, sin, token, HALF, BLOCK)
    _turn_heads(
        row, q_norm, cosine, sine, out, rstd + inverse, heads, eps,
        NORM, HEADS, CHANNELS, HALF, BLOCK, REST,
    )  # fmt: skip
    keys = heads * CHANNELS
    _turn_heads(
        row + keys, k_norm, cosine, sine, out + keys, rstd + inverse + heads, kv_heads, eps,
        NORM, KV_HEADS, CHANNELS, HALF, BLOCK, REST,
    )  # fmt: skip


@triton.jit
def _turn_heads(
    x, norm, cosine, sine, out, rstd, heads, eps,
    NORM: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    a, b, r = _load_heads(x, heads, HEADS, CHANNELS, HALF, BLOCK, REST)
    if NORM:
        square = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1) + tl.sum(r * r, axis=1)
        inverse = tl.rsqrt(square / CHANNELS + eps)
        head = tl.arange(0, HEADS)
        tl.store(rstd + head, inverse, mask=head < heads)
        of_a, of_b, of_r = _load_heads(norm, 1, 1, CHANNELS, HALF, BLOCK, REST)
        a *= inverse[:, None] * of_a
        b *= inverse[:, None] * of_b
        r *= inverse[:, None] * of_r
    low, high = a * cosine - b * sine, b * cosine + a * sine
    _store_heads(out, low, high, r, heads, HEADS, CHANNELS, HALF, BLOCK, REST)


@launched
@triton.jit
def _turn_back(
    dq, dk, dv, qkv, q_norm, k_norm, rstd, cos, sin, dqkv,
    q_stride, k_stride, v_stride, heads, kv_heads,
    NORM: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    HALF: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    turning = heads + kv_heads
    row, inverse = token * (turning + kv_heads) * CHANNELS, token * turning
    keys, values = row + heads * CHANNELS, row + turning * CHANNELS
    cosine, sine = _angles(cos, sin, token, HALF, BLOCK)
    _turn_heads_back(
        dq + token * q_stride, qkv, row, q_norm, rstd, inverse, cosine, sine, dqkv, heads,
        NORM, HEADS, CHANNELS, HALF, BLOCK, REST,
    )  # fmt: skip
    _turn_heads_back(
        dk + token * k_stride, qkv, keys, k_norm, rstd, inverse + heads, cosine, sine, dqkv,
        kv_heads, NORM, KV_HEADS, CHANNELS, HALF, BLOCK, REST,
    )  # fmt: skip
    a, b, r = _load_heads(
        dv + token * v_stride, kv_heads, KV_HEADS, CHANNELS, HALF, BLOCK, REST
    )  # fmt: skip
    _store_heads(dqkv + values, a, b, r, kv_heads, KV_HEADS, CHANNELS, HALF, BLOCK, REST)


@triton.jit
def _turn_heads_back(
    dy, x, at, norm, rstd, at_rstd, cosine, sine, dx, heads,
    NORM: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    a, b, r = _load_heads(dy, heads, HEADS, CHANNELS, HALF, BLOCK, REST)
    da, db = a * cosine + b * sine, b * cosine - a * sine
    if NORM:
        u, v, w = _load_heads(x + at, heads, HEADS, CHANNELS, HALF, BLOCK, REST)
        of_a, of_b, of_r = _load_heads(norm, 1, 1, CHANNELS, HALF, BLOCK, REST)
        inverse = _load_rstd(rstd + at_rstd, heads, HEADS)
        da *= of_a
        db *= of_b
        r *= of_r
        dot = tl.sum(da * u, axis=1) + tl.sum(db * v, axis=1) + tl.sum(r * w, axis=1)
        share = dot[:, None] * inverse * inverse / CHANNELS
        da = inverse * (da - u * share)
        db = inverse * (db - v * share)
        r = inverse * (r - w * share)
    _store_heads(dx + at, da, db, r, heads, HEADS, CHANNELS, HALF, BLOCK, REST)


@launched
@triton.jit
def _norm_weight(
    dq, dk, qkv, rstd, cos, sin, partial, q_stride, k_stride, x_stride,
    tokens, heads, kv_heads, parts, share,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, REST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    a, b, r = _no_heads(HEADS, BLOCK, REST)
    e, f, s = _no_heads(KV_HEADS, BLOCK, REST)
    begin = part * share
    for t in tl.range(begin, tl.minimum(begin + share, tokens), num_stages=STAGES):
        token = tl.cast(t, tl.int64)
        cosine, sine = _angles(cos, sin, token, HALF, BLOCK)
        x, inverse = qkv + token * x_stride, rstd + token * (heads + kv_heads)
        da, db, dr = _products(
            dq + token * q_stride, x, inverse, cosine, sine, heads,
            HEADS, CHANNELS, HALF, BLOCK, REST,
        )  # fmt: skip
        de, df, ds = _products(
            dk + token * k_stride, x + heads * CHANNELS, inverse + heads, cosine, sine, kv_heads,
            KV_HEADS, CHANNELS, HALF, BLOCK, REST,
        )  # fmt: skip
        a, b, r, e, f, s = a + da, b + db, r + dr, e + de, f + df, s + ds
    out = partial + part.to(tl.int64) * CHANNELS
    _store_sums(out, a, b, r, CHANNELS, HALF, BLOCK, REST)
    _store_sums(out + parts * CHANNELS, e, f, s, CHANNELS, HALF, BLOCK, REST)


@triton.jit
def _products(
    dy, x, rstd, cosine, sine, heads,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """Returns what some heads of a token add to the weight's gradient."""
    a, b, r = _load_heads(dy, heads, HEADS, CHANNELS, HALF, BLOCK, REST)
    u, v, w = _load_heads(x, heads, HEADS, CHANNELS, HALF, BLOCK, REST)
    inverse = _load_rstd(rstd, heads, HEADS)
    low, high = (a * cosine + b * sine) * u, (b * cosine - a * sine) * v
    return low * inverse, high * inverse, r * w * inverse


@triton.jit
def _store_sums(
    out, a, b, r, CHANNELS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """Stores the sums over heads as one head."""
    a, b, r = tl.sum(a, axis=0)[None, :], tl.sum(b, axis=0)[None, :], tl.sum(r, axis=0)[None, :]
    _store_heads(out, a, b, r, 1, 1, CHANNELS, HALF, BLOCK, REST)


@triton.jit
def _no_heads(HEADS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr):
    """Returns zeros for both halves and the rest of some heads."""
    half, rest = tl.zeros((HEADS, BLOCK), tl.float32), tl.zeros((HEADS, REST), tl.float32)
    return half, half, rest


@triton.jit
def _load_heads(
    x, heads, HEADS: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Returns both halves and the rest of some heads, zeros where there is none."""
    c, d = tl.arange(0, BLOCK), 2 * HALF + tl.arange(0, REST)
    a = _load(x, c, heads, HALF, HEADS, CHANNELS)
    b = _load(x + HALF, c, heads, HALF, HEADS, CHANNELS)
    return a, b, _load(x, d, heads, CHANNELS, HEADS, CHANNELS)


@triton.jit
def _store_heads(
    x, a, b, r, heads, HEADS: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    c, d = tl.arange(0, BLOCK), 2 * HALF + tl.arange(0, REST)
    at, inside = _heads_at(c, heads, HALF, HEADS, CHANNELS)
    tl.store(x + at, a, mask=inside)
    tl.store(x + HALF + at, b, mask=inside)
    at, inside = _heads_at(d, heads, CHANNELS, HEADS, CHANNELS)
    tl.store(x + at, r, mask=inside)


@triton.jit
def _load(x, c, heads, limit, HEADS: tl.constexpr, CHANNELS: tl.constexpr):
    at, inside = _heads_at(c, heads, limit, HEADS, CHANNELS)
    return tl.load(x + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _heads_at(c, heads, limit, HEADS: tl.constexpr, CHANNELS: tl.constexpr):
    """Returns where the channels c of some heads lie, and which there are below a limit."""
    head = tl.arange(0, HEADS)
    inside = (head < heads)[:, None] & (c < limit)[None, :]
    return head[:, None] * CHANNELS + c[None, :], inside


@triton.jit
def _load_rstd(rstd, heads, HEADS: tl.constexpr):
    head = tl.arange(0, HEADS)
    return tl.load(rstd + head, mask=head < heads, other=0.0)[:, None]


@triton.jit
def _angles(cos, sin, token, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """Returns cosine and sine of a token's angles, of which the table holds each twice."""
    c = tl.arange(0, BLOCK)
    at = token * (2 * HALF) + c
    cosine = tl.load(cos + at, mask=c < HALF, other=0.0)
    return cosine[None, :], tl.load(sin + at, mask=c < HALF, other=0.0)[None, :]

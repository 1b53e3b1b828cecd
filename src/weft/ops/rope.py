"""Rotary positions: the table, and the rotation of queries and keys: plain, normed
by head, normed over all heads.

The first c channels of a head are rotated, which may be all of them. They pair as (i, i + c/2),
the "rotate half" convention of the published checkpoints:

    y = x cos + half(x) sin        half([a, b]) = [-b, a]
    dx = dy cos + half'(dy sin)    half'([a, b]) = [b, -a]

The columns of `qkv` are [query heads | key heads | value heads]; values pass through.
"""

from math import ceil, floor, log, pi

import torch
from torch import Tensor

from weft.ops.norm import inverse_rms, normalise_dgrad, normalise_wgrad


def rope_table(
    positions: Tensor, *, theta: float, head_dim: int, dtype: str
) -> tuple[Tensor, Tensor]:
    """Returns the cosine and sine of each position's angles, every angle twice along the channels.

    Numerics:
        Computed in `dtype` throughout, in the order of operations of the published models.
    """
    channels = torch.arange(0, head_dim, 2, device=positions.device).to(_real(dtype))
    return _table(positions, 1.0 / theta ** (channels / head_dim))


def yarn_rope_table(
    positions: Tensor,
    *,
    theta: float,
    head_dim: int,
    dtype: str,
    factor: float,
    original: int,
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the table with frequencies stretched by `factor` where a channel turns so seldom
    within `original` positions that it was never seen whole, and all of it scaled.

    YaRN (arXiv 2309.00071), sections 3.2 and 3.4: channels that turn more than `beta_fast` times
    keep their frequency, those that turn less than `beta_slow` times have it divided, between them
    it is a ramp.
    """
    real = _real(dtype)
    channels = torch.arange(0, head_dim, 2, device=positions.device).to(real)
    turns = theta ** (channels / head_dim)
    low, high = (
        head_dim * log(original / (beta * 2 * pi)) / (2 * log(theta))
        for beta in (beta_fast, beta_slow)
    )
    if truncate:
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 * (low == high)  # the published code's guard against a ramp of no length
    place = torch.arange(head_dim // 2, device=positions.device).to(real)
    kept = 1 - ((place - low) / (high - low)).clamp(0, 1)
    frequencies = (1 / (factor * turns)) * (1 - kept) + (1 / turns) * kept
    scale = 0.1 * log(factor) + 1 if factor > 1 else 1.0  # section 3.4, equation 22
    cos, sin = _table(positions, frequencies)
    return cos * scale, sin * scale


def _real(dtype: str) -> torch.dtype:
    return {"float32": torch.float32, "float64": torch.float64}[dtype]


def _table(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    angles = positions.to(frequencies.dtype).unsqueeze(-1) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, *, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns rotated queries and keys, and values as a view.

    Shapes:
        qkv [T, Q] -> q [T, H, C], k [T, G, C], v [T, G, C]
    """
    x = qkv.unflatten(-1, (heads + 2 * kv_heads, -1))
    turned = _turn(x[:, : heads + kv_heads], cos, sin).to(qkv.dtype)
    return turned[:, :heads], turned[:, heads:], x[:, heads + kv_heads :]


def rotate_dgrad(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, *, heads: int, kv_heads: int
) -> Tensor:
    """Returns the gradient of `qkv`."""
    dx = dq.new_empty(dq.shape[0], heads + 2 * kv_heads, dq.shape[-1])
    dx[:, :heads] = _turn_back(dq, cos, sin)
    dx[:, heads : heads + kv_heads] = _turn_back(dk, cos, sin)
    dx[:, heads + kv_heads :] = dv
    return dx.flatten(1)


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
    x = qkv.unflatten(-1, (heads + 2 * kv_heads, -1))
    turning = x[:, : heads + kv_heads]
    rstd = inverse_rms(turning, eps)
    weight = _by_head(q_norm, k_norm, heads, kv_heads)
    normal = (turning * rstd.unsqueeze(-1)) * weight
    turned = _turn(normal, cos, sin).to(qkv.dtype)
    return turned[:, :heads], turned[:, heads:], x[:, heads + kv_heads :], rstd


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
    x = qkv.unflatten(-1, (heads + 2 * kv_heads, -1))
    both = slice(None), slice(0, heads + kv_heads)
    dnormal = torch.cat((_turn_back(dq, cos, sin), _turn_back(dk, cos, sin)), dim=1)
    dx = torch.empty_like(x)
    dx[both] = normalise_dgrad(dnormal, x[both], _by_head(q_norm, k_norm, heads, kv_heads), rstd)
    dx[:, heads + kv_heads :] = dv
    return dx.flatten(1)


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
    x = qkv.unflatten(-1, (heads + 2 * kv_heads, -1))
    both = heads + kv_heads
    dq, dk = _turn_back(dq, cos, sin), _turn_back(dk, cos, sin)
    q_acc = normalise_wgrad(q_acc, dq, x[:, :heads], rstd[:, :heads])
    return q_acc, normalise_wgrad(k_acc, dk, x[:, heads:both], rstd[:, heads:])


def wide_norm_rotate(
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
    """Returns what `norm_rotate` returns, queries normed over all heads together, and keys so too.

    Shapes:
        q_norm [H C], k_norm [G C], rstd [T, 2]: of the queries, then of the keys.
    """
    q, k, v = _three(qkv, heads, kv_heads)
    rstd = torch.stack((inverse_rms(q, eps), inverse_rms(k, eps)), dim=-1)
    normal = (
        (x * rstd[:, i, None] * w).unflatten(-1, (n, -1))
        for i, (x, w, n) in enumerate(((q, q_norm, heads), (k, k_norm, kv_heads)))
    )
    q, k = (_turn(x, cos, sin).to(qkv.dtype) for x in normal)
    return q, k, v.unflatten(-1, (kv_heads, -1)), rstd


def wide_norm_rotate_dgrad(
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
    q, k, _ = _three(qkv, heads, kv_heads)
    dq, dk = (_turn_back(x, cos, sin).flatten(1) for x in (dq, dk))
    dq = normalise_dgrad(dq, q, q_norm, rstd[:, 0])
    dk = normalise_dgrad(dk, k, k_norm, rstd[:, 1])
    return torch.cat((dq.to(qkv.dtype), dk.to(qkv.dtype), dv.flatten(1)), dim=1)


def wide_norm_rotate_wgrad(
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
    q, k, _ = _three(qkv, heads, kv_heads)
    dq, dk = (_turn_back(x, cos, sin).flatten(1) for x in (dq, dk))
    q_acc = normalise_wgrad(q_acc, dq, q, rstd[:, 0])
    return q_acc, normalise_wgrad(k_acc, dk, k, rstd[:, 1])


def _three(qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views the columns of queries, of keys and of values."""
    channels = qkv.shape[-1] // (heads + 2 * kv_heads)
    q, k, v = qkv.split([n * channels for n in (heads, kv_heads, kv_heads)], dim=-1)
    return q, k, v


def _by_head(q_norm: Tensor, k_norm: Tensor, heads: int, kv_heads: int) -> Tensor:
    return torch.cat((q_norm.expand(heads, -1), k_norm.expand(kv_heads, -1)))


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [T, heads, C] by the angles of its rows, in the dtype of the table."""
    wide, cos, sin = x.to(cos.dtype), cos.unsqueeze(1), sin.unsqueeze(1)
    wide, rest = wide[..., : cos.shape[-1]], wide[..., cos.shape[-1] :]
    half = wide.shape[-1] // 2
    y = wide * cos
    y[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=-1)
    y[..., half:].addcmul_(wide[..., :half], sin[..., half:])
    return torch.cat((y, rest), dim=-1) if rest.shape[-1] else y


def _turn_back(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies the transpose of `_turn`."""
    wide, cos, sin = dy.to(cos.dtype), cos.unsqueeze(1), sin.unsqueeze(1)
    wide, rest = wide[..., : cos.shape[-1]], wide[..., cos.shape[-1] :]
    half = wide.shape[-1] // 2
    dx = wide * cos
    dx[..., :half].addcmul_(wide[..., half:], sin[..., half:])
    dx[..., half:].addcmul_(wide[..., :half], sin[..., :half], value=-1)
    return torch.cat((dx, rest), dim=-1) if rest.shape[-1] else dx

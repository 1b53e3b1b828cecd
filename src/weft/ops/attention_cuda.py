"""Attention by the kernels of torch for NVIDIA GPUs, in half precision.

`attention_flash` takes documents of any lengths in one call, through their cumulative lengths.
`attention_cudnn` is about twice as fast (docs/log.md) and takes documents of one length only. Both
give the gradients of `attention`. `attention_mixed` takes cuDNN's forward for flash's backward.

The log-sum-exp that a body returns is for the gradient body that belongs to it: cuDNN keeps it in a
layout of its choice.

NOTE: the backward of both adds partial sums in no fixed order. The flash kernel has another mode
that does, at some cost, and reads it from `torch.use_deterministic_algorithms(True)`;
`attention_flash_dgrad_repeatable` sets it for its own launch only. cuDNN has none that torch can
ask for.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from weft.ops.attention import Segments, batched, flat, runs


def attention_flash(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Returns the attention output and the log-sum-exp [J, N] of documents of any lengths."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, segments.cumulative, segments.cumulative, segments.longest, segments.longest,
        0.0, True, False,
    )  # fmt: skip
    return out, lse


def attention_flash_dgrad(
    da: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor, lse: Tensor, segments: Segments
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of queries, keys and values of documents of any lengths."""
    no_dropout = torch.empty(2, dtype=torch.uint64, device=q.device)
    return torch.ops.aten._flash_attention_backward(
        da, q, k, v, a, lse, segments.cumulative, segments.cumulative,
        segments.longest, segments.longest, 0.0, True, no_dropout, no_dropout,
    )  # fmt: skip


def attention_flash_dgrad_repeatable(
    da: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor, lse: Tensor, segments: Segments
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients, the same bits every time."""
    with _deterministic():
        return attention_flash_dgrad(da, q, k, v, a, lse, segments)


def attention_cudnn(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Returns the attention output and cuDNN's own log-sum-exp of documents of one length."""
    (run,) = runs(segments)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        batched(q, run), batched(k, run), batched(v, run), None, True, 0.0, True
    )
    return flat(out), lse


def attention_cudnn_dgrad(
    da: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor, lse: Tensor, segments: Segments
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of queries, keys and values of documents of one length."""
    (run,) = runs(segments)
    da, q, k, v, a = (batched(x, run) for x in (da, q, k, v, a))
    no_dropout = torch.empty((), dtype=torch.int64, device=q.device)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        da, q, k, v, a, lse, no_dropout, no_dropout, None, None, None,
        run.length, run.length, 0.0, True,
    )  # fmt: skip
    return flat(dq), flat(dk), flat(dv)


def attention_mixed(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Returns the attention output, by cuDNN where it can, for a backward of flash attention.

    Numerics:
        cuDNN's forward repeats its bits. Its log-sum-exp is handed over as flash keeps it, [J, N].
    """
    if not _is_uniform(segments):
        return attention_flash(q, k, v, segments)
    out, lse = attention_cudnn(q, k, v, segments)
    return out, lse.view(lse.shape[:3]).transpose(0, 1).reshape(q.shape[1], q.shape[0])


def attention_cudnn_or_flash(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments
) -> tuple[Tensor, Tensor]:
    """Returns the attention output, by cuDNN where all documents have one length."""
    body = attention_cudnn if _is_uniform(segments) else attention_flash
    return body(q, k, v, segments)


def attention_cudnn_or_flash_dgrad(
    da: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor, lse: Tensor, segments: Segments
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients by the kernel that `attention_cudnn_or_flash` took."""
    body = attention_cudnn_dgrad if _is_uniform(segments) else attention_flash_dgrad
    return body(da, q, k, v, a, lse, segments)


def _is_uniform(segments: Segments) -> bool:
    return len(runs(segments)) == 1


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)

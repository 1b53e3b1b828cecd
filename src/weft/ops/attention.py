"""Causal attention inside each document, and what a document's edge is.

    p  = softmax(q k^T / sqrt(C) + mask)      a = p v      lse = log sum exp of the masked scores
    dv = p^T da
    ds = p (da v^T - rowsum(da a)) / sqrt(C)      dq = ds k      dk = ds^T q

Tokens of all documents lie in one flat dim. Neighbouring documents of one length form a run, which
is one batched call on views, so the cost is that of the documents themselves and full sequences are
a single call. A key/value head serves the J / K query heads next to it.

`attention` is written out and runs on any device in any dtype. `attention_cpu` gives the same
values through the flash kernels of torch for CPUs, which skip the masked half and take strided,
grouped heads in every dtype.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor

from weft.ops.precision import accumulation_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Segments:
    """The documents of a flat token dim; `cumulative` is 0 and the ends, on the device, and `held`
    are the tokens whose queries are here, in their order.
    """

    ends: tuple[int, ...]
    longest: int
    cumulative: Tensor
    held: tuple[range, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Neighbouring documents of one length: tokens [start, start + count length)."""

    start: int
    count: int
    length: int

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.count * self.length)


def segments(
    ends: Iterable[int], device: torch.device | str, *, held: Sequence[range] = ()
) -> Segments:
    """Returns the documents that end at these tokens; the last end is the number of tokens, all of
    which are held where nothing is said.

    Example:
        >>> segments((2, 5), "cpu").longest
        3
    """
    edges = (0, *ends)
    lengths = [end - start for start, end in pairwise(edges)]
    assert min(lengths, default=0) > 0, f"document ends {edges[1:]} must ascend from 1"
    cumulative = torch.tensor(edges, dtype=torch.int32)
    if torch.device(device).type == "cuda":  # from pinned memory the copy does not hold up the host
        cumulative = cumulative.pin_memory().to(device, non_blocking=True)
    return Segments(
        ends=edges[1:],
        longest=max(lengths),
        cumulative=cumulative,
        held=tuple(held) or (range(edges[-1]),),
    )


def runs(segments: Segments) -> tuple[Run, ...]:
    """Returns the maximal runs of neighbouring documents of one length.

    Example:
        >>> [(r.start, r.count, r.length) for r in runs(segments((2, 4, 7), "cpu"))]
        [(0, 2, 2), (4, 1, 3)]
    """
    edges = (0, *segments.ends)
    found, start = [], 0
    for length, group in groupby(end - begin for begin, end in pairwise(edges)):
        count = len(list(group))
        found.append(Run(start=start, count=count, length=length))
        start += count * length
    return tuple(found)


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Returns the attention output and the log-sum-exp of its scores.

    Shapes:
        q [N, J, C], k [N, K, C], v [N, K, C] -> a [N, J, C], lse [J, N]

    Numerics:
        Scores, softmax and sums in the accumulation dtype.
    """
    return _forward(written_out, q, k, v, segments)


def attention_dgrad(
    da: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor, lse: Tensor, segments: Segments
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of queries, keys and values, the probabilities rebuilt from `lse`."""
    return _backward(written_out_dgrad, (da, q, k, v, a), lse, segments)


def attention_cpu(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Returns what `attention` returns, by the flash kernel for CPUs."""
    return _forward(_flash_cpu, q, k, v, segments)


def attention_cpu_dgrad(
    da: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor, lse: Tensor, segments: Segments
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `attention_dgrad` returns, by the flash kernel for CPUs."""
    return _backward(_flash_cpu_dgrad, (da, q, k, v, a), lse, segments)


def batched(x: Tensor, run: Run) -> Tensor:
    """Views the tokens of a run, [N, heads, C], as [count, heads, length, C]."""
    return x[run.tokens].unflatten(0, (run.count, run.length)).transpose(1, 2)


def flat(x: Tensor) -> Tensor:
    """Returns [count, heads, length, C] as [tokens, heads, C], a view where strides allow."""
    return x.transpose(1, 2).flatten(0, 1)


def batched_lse(lse: Tensor, run: Run) -> Tensor:
    """Views the log-sum-exp of a run, [J, N], as [count, J, length]."""
    return lse[:, run.tokens].unflatten(1, (run.count, run.length)).transpose(0, 1)


def flat_lse(lse: Tensor) -> Tensor:
    """Returns [count, J, length] as [J, tokens]."""
    return lse.transpose(0, 1).flatten(1)


def joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    """Returns the runs' results one after another; a single run is returned as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _forward(
    body: Callable[..., tuple[Tensor, Tensor]], q: Tensor, k: Tensor, v: Tensor, segments: Segments
) -> tuple[Tensor, Tensor]:
    outs, sums = [], []
    for run in runs(segments):
        out, lse = body(batched(q, run), batched(k, run), batched(v, run))
        outs.append(flat(out))
        sums.append(flat_lse(lse))
    return joined(outs), joined(sums, 1)


def _backward(
    body: Callable[..., tuple[Tensor, Tensor, Tensor]],
    operands: tuple[Tensor, ...],
    lse: Tensor,
    segments: Segments,
) -> tuple[Tensor, Tensor, Tensor]:
    grads: tuple[list[Tensor], ...] = ([], [], [])
    for run in runs(segments):
        found = body(*(batched(x, run) for x in operands), batched_lse(lse, run))
        for grad, part in zip(grads, found, strict=True):
            grad.append(flat(part))
    dq, dk, dv = (joined(grad) for grad in grads)
    return dq, dk, dv


def _by_group(x: Tensor, kv_heads: int) -> Tensor:
    """Views [B, J, S, C] as [B, K, J / K, S, C] in the accumulation dtype."""
    return x.to(accumulation_dtype(x.dtype)).unflatten(1, (kv_heads, -1))


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Scaled scores; the queries are those of the last tokens that have keys."""
    queries, keys = q.shape[-2], k.shape[-2]
    future = torch.ones(queries, keys, dtype=torch.bool, device=q.device).triu(1 + keys - queries)
    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    return scores.masked_fill(future, float("-inf"))


def written_out(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns output and log-sum-exp of documents of one length, or of their last tokens.

    Shapes:
        q [B, J, S', C], k [B, K, S, C], v [B, K, S, C] with S' <= S -> [B, J, S', C], [B, J, S']
    """
    wide_q, wide_k, wide_v = (_by_group(x, k.shape[1]) for x in (q, k, v))
    scores = _scores(wide_q, wide_k)
    out = scores.softmax(-1) @ wide_v
    return out.flatten(1, 2).to(q.dtype), scores.logsumexp(-1).flatten(1, 2)


def written_out_dgrad(
    da: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of the operands of `written_out`."""
    da, wide_q, wide_k, wide_v, a = (_by_group(x, k.shape[1]) for x in (da, q, k, v, a))
    p = (_scores(wide_q, wide_k) - lse.unflatten(1, (k.shape[1], -1)).unsqueeze(-1)).exp()
    ds = p * (da @ wide_v.transpose(-1, -2) - (da * a).sum(-1, keepdim=True))
    ds = ds / q.shape[-1] ** 0.5
    dk = (ds.transpose(-1, -2) @ wide_q).sum(2)
    dv = (p.transpose(-1, -2) @ da).sum(2)
    return (ds @ wide_k).flatten(1, 2).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _flash_cpu(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)


def _flash_cpu_dgrad(
    da: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return backward(da, q, k, v, a, lse, 0.0, True)

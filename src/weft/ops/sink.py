"""Attention with a sink: each head has one more score, which no key owns and no value answers.

    p   = softmax over [q k^T / sqrt(C) + mask | sink]      a = p v, the sink's share left out
    lse = log sum exp of all of them, the sink among them

With that `lse` the gradients of q, k and v are those of plain attention. The sink's own value is
zero, so its gradient is

    dsink = -sum over tokens of exp(sink - lse) rowsum(da a)

`window` is how many tokens a token sees, itself among them; 0 is all of its document. A rank of a
sequence-parallel group has the heads from `first` on. Scores are written out: memory grows with the
square of a document.
"""

import torch
from torch import Tensor

from weft.ops.attention import Segments, batched, batched_lse, flat, flat_lse, joined, runs
from weft.ops.precision import accumulation_dtype


def sink_attention(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, segments: Segments, *, first: int, window: int
) -> tuple[Tensor, Tensor]:
    """Returns the attention output and the log-sum-exp of its scores.

    Shapes:
        q [N, J, C], k [N, K, C], v [N, K, C], sinks [H] -> a [N, J, C], lse [J, N]

    Numerics:
        Scores, softmax and sums in the accumulation dtype.
    """
    mine = sinks[first : first + q.shape[1]].to(accumulation_dtype(q.dtype))
    outs, sums = [], []
    for run in runs(segments):
        wide_q, wide_k, wide_v = (_by_group(batched(x, run), k.shape[1]) for x in (q, k, v))
        scores = _scores(wide_q, wide_k, window)
        sink = mine.view(1, k.shape[1], -1, 1, 1).expand(*scores.shape[:-1], 1)
        p = torch.cat((scores, sink), -1)
        outs.append(flat((p.softmax(-1)[..., :-1] @ wide_v).flatten(1, 2)).to(q.dtype))
        sums.append(flat_lse(p.logsumexp(-1).flatten(1, 2)))
    return joined(outs), joined(sums, 1)


def sink_attention_dgrad(
    da: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    lse: Tensor,
    segments: Segments,
    *,
    first: int,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of queries, keys and values, the probabilities rebuilt from `lse`."""
    grads: tuple[list[Tensor], ...] = ([], [], [])
    for run in runs(segments):
        operands = (_by_group(batched(x, run), k.shape[1]) for x in (da, q, k, v, a))
        wide_da, wide_q, wide_k, wide_v, wide_a = operands
        total = batched_lse(lse, run).unflatten(1, (k.shape[1], -1)).unsqueeze(-1)
        p = (_scores(wide_q, wide_k, window) - total).exp()
        share = (wide_da * wide_a).sum(-1, keepdim=True)
        ds = p * (wide_da @ wide_v.transpose(-1, -2) - share) / q.shape[-1] ** 0.5
        dk, dv = (ds.transpose(-1, -2) @ wide_q).sum(2), (p.transpose(-1, -2) @ wide_da).sum(2)
        for grad, part in zip(grads, ((ds @ wide_k).flatten(1, 2), dk, dv), strict=True):
            grad.append(flat(part))
    dq, dk, dv = (joined(grad).to(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True))
    return dq, dk, dv


def sink_attention_wgrad(
    acc: Tensor, da: Tensor, sinks: Tensor, a: Tensor, lse: Tensor, *, first: int, window: int
) -> Tensor:
    """Adds the gradient of the sinks of this rank's heads into `acc`."""
    own = slice(first, first + lse.shape[0])
    share = (da.to(acc.dtype) * a).sum(-1).T  # [J, N]
    p = (sinks[own].to(acc.dtype).unsqueeze(-1) - lse).exp()
    acc[own].sub_((p * share).sum(-1))
    return acc


def _by_group(x: Tensor, kv_heads: int) -> Tensor:
    """Views [B, J, S, C] as [B, K, J / K, S, C] in the accumulation dtype."""
    return x.to(accumulation_dtype(x.dtype)).unflatten(1, (kv_heads, -1))


def _scores(q: Tensor, k: Tensor, window: int) -> Tensor:
    """The scores of each token against those it sees, `-inf` elsewhere."""
    length = q.shape[-2]
    place = torch.arange(length, device=q.device)
    distance = place.unsqueeze(-1) - place
    hidden = (distance < 0) | (distance >= (window or length))
    return ((q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5).masked_fill(hidden, float("-inf"))

"""Causal attention of some queries of a stream to all of its keys.

Queries lie range by range of the stream's tokens (`Segments.held`). Where a range meets a document
that began before it, its queries are the last tokens of a shorter document: they attend to all keys
from the document's first to their own. Ranges of one document share its keys, so the gradients of
keys and values are sums over ranges, in the order of the ranges.

A `Part` is what one batched call of the bodies of `ops.attention` can take: neighbouring documents
of one length that a range holds whole, or one piece of a document.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import torch
from torch import Tensor

from weft.ops.attention import (
    Run,
    Segments,
    batched,
    batched_lse,
    flat,
    flat_lse,
    joined,
    written_out,
    written_out_dgrad,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Queries among those that are here, and the keys they attend to, as runs of equal count."""

    queries: Run
    keys: Run


def parts(segments: Segments) -> tuple[Part, ...]:
    """Returns the parts of the queries that are here, in their order.

    Example:
        >>> from weft.ops.attention import segments
        >>> found = parts(segments((6, 8), "cpu", held=(range(1, 4), range(6, 8))))
        >>> [(p.queries.tokens, p.keys.tokens) for p in found]
        [(slice(0, 3, None), slice(0, 4, None)), (slice(3, 5, None), slice(6, 8, None))]
    """
    found: list[Part] = []
    for whole, group in groupby(_pieces(segments), key=_kind):
        run = list(group)
        count = len(run) if whole is not None else 1
        for first in run[::count]:
            queries, keys = replace(first.queries, count=count), replace(first.keys, count=count)
            found.append(Part(queries=queries, keys=keys))
    return tuple(found)


def _kind(part: Part) -> tuple[int, int] | None:
    """What neighbours that are held whole must share to be one batch; pieces share nothing."""
    length, offset = part.queries.length, part.keys.start - part.queries.start
    return (length, offset) if length == part.keys.length else None


def _pieces(segments: Segments) -> Iterator[Part]:
    """Every document as far as a range holds it."""
    here = 0
    for held in segments.held:
        for start, end in pairwise((0, *segments.ends)):
            first, last = max(start, held.start), min(end, held.stop)
            if first < last:
                queries = Run(start=here + first - held.start, count=1, length=last - first)
                yield Part(queries=queries, keys=Run(start=start, count=1, length=last - start))
        here += len(held)


def attention_part(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Returns the attention output of the queries that are here, and their log-sum-exp.

    Shapes:
        q [T, H, C], k [N, G, C], v [N, G, C] -> a [T, H, C], lse [H, T]

    Numerics:
        As `attention`: a query has the same keys, so the same terms in the same order.
    """
    outs, sums = [], []
    for part in parts(segments):
        own, keys = part.queries, part.keys
        out, lse = written_out(batched(q, own), batched(k, keys), batched(v, keys))
        outs.append(flat(out))
        sums.append(flat_lse(lse))
    return joined(outs), joined(sums, 1)


def attention_part_dgrad(
    da: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor, lse: Tensor, segments: Segments
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of these queries, and their terms of those of all keys and values.

    Numerics:
        Terms of several ranges are added in the order of the ranges, in the dtype of the keys.
    """
    dq = []
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for part in parts(segments):
        own, keys = part.queries, part.keys
        found = written_out_dgrad(
            batched(da, own), batched(q, own), batched(k, keys), batched(v, keys), batched(a, own),
            batched_lse(lse, own),
        )  # fmt: skip
        dq.append(flat(found[0]))
        dk[keys.tokens] += flat(found[1])
        dv[keys.tokens] += flat(found[2])
    return joined(dq), dk, dv

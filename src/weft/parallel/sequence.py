"""Ulysses sequence parallelism: tokens are cut over ranks, but inside attention heads are.

    q, k, v [T, heads, C]  pack  [sp, T, P]  all-to-all  [N, P]  split  q, k, v [N, heads / sp, C]
    a [N, heads / sp, C]   all-to-all  [sp, T, heads / sp, C]    join   a [T, A]

Micro-batches are one flat stream of N = B S tokens and rank r holds tokens [r T, (r + 1) T), so the
blocks that arrive from the ranks, laid end to end, are already the stream: receiving needs no copy.

Paper: 1.2; forward volume a rank b s h (n - 1) / n (2 + 2 / m) / n elements.
"""

from typing import Any

from weft.parallel.layout import HeadSplit


def seq_to_heads(
    o: Any, q: Any, k: Any, v: Any, *, sp: int, heads: int, kv_heads: int, split: HeadSplit
) -> Any:
    """Every token of this rank's heads, from this rank's tokens of every head."""
    (p,) = o.call("pack_heads", q, k, v, sp=sp, heads=heads, kv_heads=kv_heads)
    (p,) = o.call("all_to_all", p, axis="sp", label="qkv")
    return o.call("split_heads", p, heads=split.heads, kv_heads=split.kv_heads)


def heads_to_seq(o: Any, a: Any, *, sp: int, split: HeadSplit) -> Any:
    """This rank's tokens of every head, from every token of this rank's heads."""
    (p,) = o.call("all_to_all", a, axis="sp", label="attention", renames={"P": "J C"})
    (a,) = o.call("join_heads", p, sp=sp, heads=split.heads)
    return a

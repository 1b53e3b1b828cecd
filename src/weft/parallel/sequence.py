"""Ulysses sequence parallelism: tokens are cut over ranks, but inside attention heads are.

    q, k, v [T, heads, C]  pack  [sp, T, P]  all-to-all  [N, P]  split  q, k, v [N, heads / sp, C]
    a [N, heads / sp, C]   all-to-all  [sp, T, heads / sp, C]    join   a [T, A]

Micro-batches are one flat stream of N = B S tokens and rank r holds tokens [r T, (r + 1) T), so the
blocks that arrive from the ranks, laid end to end, are already the stream: receiving needs no copy.

Paper: 1.2; forward volume a rank b s h (n - 1) / n (2 + 2 / m) / n elements.
"""

from dataclasses import dataclass
from typing import Any, final

from weft.parallel.layout import HeadSplit
from weft.parallel.strategy import (
    AttentionStrategy,
    Projected,
    attend_all,
    project_here,
    project_out,
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Together(AttentionStrategy):
    """Every token and every head on one rank: nothing is exchanged."""

    heads: int
    kv_heads: int

    @property
    def projected(self) -> Projected:
        return Projected(heads=self.heads, kv_heads=self.kv_heads)

    def project_qkv(self, o: Any, h: Any, w: Any) -> Any:
        return project_here(o, h, w)

    def seq_to_heads(self, o: Any, q: Any, k: Any, v: Any) -> Any:  # noqa: ARG002 - as others do
        return q, k, v

    def attend(self, o: Any, q: Any, k: Any, v: Any, segments: Any) -> Any:
        return attend_all(o, q, k, v, segments)

    def heads_to_seq(self, o: Any, a: Any) -> Any:
        (a,) = o.call("join_heads", a, sp=1, heads=self.heads)
        return a

    def project(self, o: Any, a: Any, w: Any) -> Any:
        return project_out(o, a, w)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Ulysses(AttentionStrategy):
    """Tokens cut outside attention, heads inside; two all-to-alls, weights replicated."""

    sp: int
    heads: int
    kv_heads: int
    split: HeadSplit

    @property
    def projected(self) -> Projected:
        return Projected(heads=self.heads, kv_heads=self.kv_heads)

    def project_qkv(self, o: Any, h: Any, w: Any) -> Any:
        return project_here(o, h, w)

    def seq_to_heads(self, o: Any, q: Any, k: Any, v: Any) -> Any:
        return seq_to_heads(
            o, q, k, v, sp=self.sp, heads=self.heads, kv_heads=self.kv_heads, split=self.split
        )

    def attend(self, o: Any, q: Any, k: Any, v: Any, segments: Any) -> Any:
        return attend_all(o, q, k, v, segments)

    def heads_to_seq(self, o: Any, a: Any) -> Any:
        return heads_to_seq(o, a, sp=self.sp, split=self.split)

    def project(self, o: Any, a: Any, w: Any) -> Any:
        return project_out(o, a, w)


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

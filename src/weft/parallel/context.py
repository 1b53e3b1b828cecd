"""Context parallelism: tokens are cut over ranks and every rank attends with its own queries.

    k, v [T, G, C]  join  [T, 2G, C]  all-gather  [N, 2G, C]  order  k, v [N, G, C] as the stream
    q    [T, H, C]  attends to them, each token to what precedes it

A rank holds two chunks of each sequence, an early and a late one (`parallel.share`), so that causal
work is equal. What is gathered lies rank by rank; `order` puts it back into the order of the
stream. The gradient of the gathered keys and values is a reduce-scatter: every rank has a term for
every token.

Paper: 1.2; forward volume a rank b s h (n - 1) / n 2 / m elements.
"""

from dataclasses import dataclass
from typing import Any, final

from weft.parallel.strategy import AttentionStrategy, Projected, project_here, project_out


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Zigzag(AttentionStrategy):
    """Queries stay, keys and values are gathered; weights replicated."""

    sp: int
    heads: int
    kv_heads: int
    sequences: int

    @property
    def projected(self) -> Projected:
        return Projected(heads=self.heads, kv_heads=self.kv_heads)

    def project_qkv(self, o: Any, h: Any, w: Any) -> Any:
        return project_here(o, h, w)

    def seq_to_heads(self, o: Any, q: Any, k: Any, v: Any) -> Any:
        (p,) = o.call("join_kv", k, v)
        letters = {"D": "2G C", "U": "N"}
        (p,) = o.call("all_gather", p, axis="sp", label="keys and values", renames=letters)
        k, v = o.call("order_kv", p, sp=self.sp, sequences=self.sequences)
        return q, k, v

    def attend(self, o: Any, q: Any, k: Any, v: Any, segments: Any) -> Any:
        a, _ = o.call("attention_part", q, k, v, segments)
        return a

    def heads_to_seq(self, o: Any, a: Any) -> Any:
        (a,) = o.call("join_heads", a, sp=1, heads=self.heads, renames={"N": "T", "J": "H"})
        return a

    def project(self, o: Any, a: Any, w: Any) -> Any:
        return project_out(o, a, w)

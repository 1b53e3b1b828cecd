"""Tensor parallelism: every rank works on all tokens of its group with a slice of each weight.

    attention      all-gather -> QKV of own heads -> attention -> out (columns) -> reduce-scatter
    feed-forward   all-gather -> FC1, FC3 (rows) -> SwiGLU -> FC2 (columns) -> reduce-scatter

Norms, router and residual stay on this rank's T tokens. Routed experts take every choice of every
token, so the number of rows is known before the router has spoken: no host synchronisation. A gate
weight's gradient is a sum over the width, so it is reduced over the ranks like the outputs.

Where ranks share a key/value head, keys and values keep a weight of their own, whole on every rank,
of which each uses one head; the sum over replicas adds up what all of them did with it.

Paper: 1.2, Eqs 1 and 4; elements a rank, each way and half 2 b s h (n - 1) / n.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

from weft.parallel.expert import Gathered
from weft.parallel.layout import HeadSplit
from weft.parallel.strategy import (
    AttentionStrategy,
    DenseStrategy,
    ExpertStrategy,
    Projected,
    Renames,
    attend_all,
)

_ALL = MappingProxyType({"T": "N"})
_GATHER = MappingProxyType({"U": "N"})
_HEADS = MappingProxyType({"T": "N", "Q": "P", "H": "J", "G": "K"})
_WEIGHTS: Mapping[str, str] = MappingProxyType(
    {"qkv": "P D", "qkv_bias": "P", "out": "D M", "q": "M D", "kv": "2 G C D"}
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HeadSlices(AttentionStrategy):
    """The weights of this rank's heads, and every token of the group."""

    split: HeadSplit
    sp_rank: int

    @property
    def projected(self) -> Projected:
        return Projected(
            heads=self.split.heads,
            kv_heads=self.split.kv_heads,
            tokens="N",
            columns="P",
            renames=_HEADS,
            weights=_WEIGHTS,
        )

    def project_qkv(self, o: Any, h: Any, w: Any) -> Any:
        (h,) = o.call("all_gather", h, axis="sp", label="tokens of attention", renames=_GATHER)
        letters = {"T": "N", "Q": "P"}
        if self.split.replicas == 1:
            (qkv,) = o.call("qkv_project", h, w.qkv, renames=letters)
            return qkv
        head = self.sp_rank // self.split.replicas
        (qkv,) = o.call("qkv_project_shared", h, w.q, w.kv, head=head)
        return qkv

    def seq_to_heads(self, o: Any, q: Any, k: Any, v: Any) -> Any:  # noqa: ARG002 - as others do
        return q, k, v

    def attend(self, o: Any, q: Any, k: Any, v: Any, segments: Any) -> Any:
        return attend_all(o, q, k, v, segments)

    def heads_to_seq(self, o: Any, a: Any) -> Any:
        letters = {"T": "N", "A": "M"}
        (a,) = o.call("join_heads", a, sp=1, heads=self.split.heads, renames=letters)
        return a

    def project(self, o: Any, a: Any, w: Any) -> Any:
        (y,) = o.call("project", a, w, renames={"T": "N", "A": "M"})
        (y,) = o.call("reduce_scatter", y, axis="sp", label="attention", renames=_GATHER)
        return y


@final
class WidthSlices(ExpertStrategy, DenseStrategy):
    """A slice of the width of every expert and feed-forward, and every token of the group.

    It lives as long as one recording and remembers the tokens it has gathered, which routed and
    shared experts both read.
    """

    def __init__(self, *, num_experts: int, top_k: int) -> None:
        self.num_experts = num_experts
        self.top_k = top_k
        self._gathered: tuple[Any, Any] | None = None

    @property
    def renames(self) -> Renames:
        return _ALL

    def enter(self, o: Any, h: Any) -> Any:
        if self._gathered is None or self._gathered[0] is not h:
            (tokens,) = o.call("all_gather", h, axis="sp", label="tokens", renames=_GATHER)
            self._gathered = (h, tokens)
        return self._gathered[1]

    def leave(self, o: Any, y: Any) -> Any:
        (y,) = o.call("reduce_scatter", y, axis="sp", label="outputs", renames=_GATHER)
        return y

    def dispatch(self, o: Any, h: Any, weights: Any, experts: Any) -> Gathered:
        on = {"axis": "sp", "renames": _GATHER}
        (experts,) = o.call("all_gather_experts", experts, label="experts", **on)
        (weights,) = o.call("all_gather_weights", weights, label="weights", **on)
        tokens = self.enter(o, h)
        letters = {**_ALL, "O": "R"}
        order, slot_row, _, ends = o.call(
            "plan_rows", experts, experts=self.num_experts, renames=letters
        )
        by = {"top_k": self.top_k, "renames": letters}
        (rows,) = o.call("permute", tokens, order, slot_row, **by)
        (scales,) = o.call("permute_weights", weights, order, slot_row, **by)
        return Gathered(rows=rows, row_weights=scales, ends=ends, order=order, slot_row=slot_row)

    def combine(self, o: Any, d: Any, e: Gathered) -> Any:
        (partial,) = o.call("gather_sum", d, e.slot_row, e.order, top_k=self.top_k, renames=_ALL)
        return self.leave(o, partial)

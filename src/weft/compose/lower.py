"""The lowering: the interpretation of a layer for one layout, over any algebra.

Layer text in, operators of the vocabulary out: local ones one to one, with the family's attributes;
what a layout changes by the strategies of `parallel`, chosen once. Over a `Recorder` it gives a
program; over `runtime.eager` it computes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from weft.compose.plan import Plan, loss_rows
from weft.compose.spread import attention_of, feed_forward_of
from weft.parallel import capacity


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What every layer shares: the rotary table, the documents, and the sums that run through the
    step.
    """

    cos: Any = None
    sin: Any = None
    segments: Any = None
    losses: Any = None
    tally: Any = None
    dropped: Any = None
    overflow: Any = None
    bias: Any = None
    past: Any = None
    forced: Any = None
    divisor: Any = None
    loss: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """A token's choices and their gate weights; of those kept, a dropped one names no expert."""

    weights: Any
    experts: Any
    kept: Any


class Lowering:
    """The algebra that `model.layer` and `model.lm` are written over.

    It holds, beside the plan, the running sums of one recording: `losses`, `tally`, `dropped`,
    `overflow` and `loss` move on at each call.
    """

    def __init__(self, algebra: Any, plan: Plan, context: Context) -> None:
        self.algebra = algebra
        self.plan = plan
        self.context = context
        self.losses = context.losses
        self.tally = context.tally
        self.dropped = context.dropped
        self.overflow = context.overflow
        self.routing: Routing | None = None
        self.spread = attention_of(plan)
        self.experts, self.dense = feed_forward_of(plan)

    # ---- attention half --------------------------------------------------------------------------

    def rms_norm(self, x: Any, w: Any) -> Any:
        y, _ = self.algebra.call("rms_norm", x, w, eps=self.plan.arithmetic.norm_eps)
        return y

    def add_rms_norm(self, x: Any, r: Any, w: Any) -> Any:
        s, y, _ = self.algebra.call("add_rms_norm", x, r, w, eps=self.plan.arithmetic.norm_eps)
        return s, y

    def layer_norm(self, x: Any, w: Any, b: Any) -> Any:
        y, *_ = self.algebra.call("layer_norm", x, w, b, eps=self.plan.arithmetic.norm_eps)
        return y

    def add_layer_norm(self, x: Any, r: Any, w: Any, b: Any) -> Any:
        eps = self.plan.arithmetic.norm_eps
        s, y, *_ = self.algebra.call("add_layer_norm", x, r, w, b, eps=eps)
        return s, y

    def qkv_project(self, h: Any, w: Any) -> Any:
        qkv = self.spread.project_qkv(self.algebra, h, w)
        if not self.plan.shape.attention_bias:
            return qkv
        here = self.spread.projected
        return self._biased(qkv, w.qkv_bias, {"T": here.tokens, "D": here.columns})

    def rotate(self, qkv: Any, w: Any) -> Any:
        shape, here = self.plan.shape, self.spread.projected
        table = (self.context.cos, self.context.sin)
        of = {"heads": here.heads, "kv_heads": here.kv_heads, "renames": here.renames}
        if not shape.qk_norm:
            return self.algebra.call("rotate", qkv, *table, **of)
        eps, wide = self.plan.arithmetic.norm_eps, shape.family.wide_qk_norm
        norms = (w.wide_q_norm, w.wide_k_norm) if wide else (w.q_norm, w.k_norm)
        q, k, v, _ = self.algebra.call(shape.rotation, qkv, *norms, *table, eps=eps, **of)
        return q, k, v

    def seq_to_heads(self, q: Any, k: Any, v: Any) -> Any:
        return self.spread.seq_to_heads(self.algebra, q, k, v)

    def attention(self, q: Any, k: Any, v: Any, w: Any) -> Any:
        if self.plan.shape.family.sinks:
            return self._sink_attention(q, k, v, w, window=0)
        return self.spread.attend(self.algebra, q, k, v, self.context.segments)

    def window_attention(self, q: Any, k: Any, v: Any, w: Any) -> Any:
        return self._sink_attention(q, k, v, w, window=self.plan.shape.window)

    def _sink_attention(self, q: Any, k: Any, v: Any, w: Any, *, window: int) -> Any:
        first = self.plan.layout.sp_rank(self.plan.rank) * self.plan.heads.heads
        segments = self.context.segments
        a, _ = self.algebra.call(
            "sink_attention", q, k, v, w.sinks, segments, first=first, window=window
        )
        return a

    def heads_to_seq(self, a: Any) -> Any:
        return self.spread.heads_to_seq(self.algebra, a)

    def project(self, a: Any, w: Any) -> Any:
        shape = self.plan.shape
        y = self.spread.project(self.algebra, a, w.out)
        biased = shape.attention_bias and shape.family.out_bias
        return self._biased(y, w.out_bias, {}) if biased else y

    def add(self, x: Any, y: Any) -> Any:
        (z,) = self.algebra.call("add", x, y)
        return z

    def _biased(self, x: Any, b: Any, renames: Mapping[str, str]) -> Any:
        (y,) = self.algebra.call("add_bias", x, b, renames=renames)
        return y

    # ---- router and experts ----------------------------------------------------------------------

    def route(self, h: Any, w: Any) -> Routing:
        """Choices and gate weights; on the way the load and the balance losses are added to their
        sums.
        """
        logits = self._router_logits(h, w)
        weights, experts = self._select(logits)
        self._balance(logits, experts)
        kept = self._drop(logits, experts) if self.plan.arithmetic.balance.capacity else experts
        self.routing = Routing(weights=weights, experts=experts, kept=kept)
        return self.routing

    def _balance(self, logits: Any, experts: Any) -> None:
        """The load and the losses that keep it even, added to their sums."""
        a, shape, plan = self.plan.arithmetic, self.plan.shape, self.plan
        numbering = plan.numbering
        place = {"first": numbering.first, "stretch": numbering.stretch}
        (load,) = self.algebra.call(
            "count_load", experts, experts=shape.experts, rows=plan.micro_batch, **place
        )
        (self.tally,) = self.algebra.call("add_load", load, self.tally)
        if plan.layout.sp > 1:
            (load,) = self.algebra.call("sum_load", load, axis="sp", label="load")
        (self.losses,) = self.algebra.call(
            "router_losses", logits, load, self.context.past, self.losses,
            top_k=shape.top_k, score=a.score, aux_coef=a.aux_coef, z_coef=a.z_coef,
            device_coef=a.balance.device_coef, sequence_coef=a.balance.sequence_coef,
            global_coef=a.balance.global_coef, groups=a.balance.device_groups,
            scale=1.0 / plan.micro_batches, sequence=plan.sequence, **place,
        )  # fmt: skip

    def _drop(self, logits: Any, experts: Any) -> Any:
        """The choices that groups of experts have room for; the others are counted."""
        plan = self.plan
        kept, dropped = capacity.keep_within(
            self.algebra, logits, experts,
            limit=capacity.Limit(
                groups=plan.arithmetic.balance.device_groups, capacity=plan.group_capacity
            ),
            share=capacity.Share(
                first=plan.first_token, tokens=plan.local_tokens, sp=plan.layout.sp
            ),
            score=plan.arithmetic.score, num_experts=plan.shape.experts,
        )  # fmt: skip
        (self.dropped,) = self.algebra.call("add_dropped", dropped, self.dropped)
        return kept

    def _router_logits(self, h: Any, w: Any) -> Any:
        if self.plan.shape.family.router_offset:
            (logits,) = self.algebra.call("biased_router_logits", h, w.router, w.router_offset)
        else:
            (logits,) = self.algebra.call("router_logits", h, w.router)
        return logits

    def _select(self, logits: Any) -> Any:
        a, shape, bias = self.plan.arithmetic, self.plan.shape, self.context.bias
        rule: dict[str, Any] = {
            "top_k": shape.top_k, "score": a.score,
            "renormalise": a.renormalise, "scaling": a.scaling,
        }  # fmt: skip
        mixer = {"jitter": a.router_jitter}
        grouped = {**rule, "groups": shape.groups, "top_groups": shape.top_groups}
        rules = {
            "select_experts": rule, "select_grouped_experts": grouped, "select_sparsemixer": mixer,
            "replay_experts": rule, "replay_sparsemixer": mixer,
        }  # fmt: skip
        forced = () if self.context.forced is None else (self.context.forced,)
        op = shape.replay if forced else shape.selection
        return self.algebra.call(op, logits, bias, *forced, **rules[op])

    def dispatch(self, h: Any, r: Routing) -> Any:
        e = self.experts.dispatch(self.algebra, h, r.weights, r.kept)
        if self.plan.bounded_rows:
            (self.overflow,) = self.algebra.call("add_dropped", e.overflow, self.overflow)
        return e

    def expert_up(self, e: Any, w: Any) -> Any:
        (u,) = self.algebra.call("expert_up", e.rows, w.up, e.ends)
        if self.plan.shape.family.expert_bias:
            (u,) = self.algebra.call("add_expert_bias", u, w.up_bias, e.ends)
        return u

    def swiglu(self, u: Any, e: Any) -> Any:
        if not self.plan.shape.family.clamped:
            (s,) = self.algebra.call("swiglu", u, e.row_weights, e.ends)
            return s
        a = self.plan.arithmetic
        rule = {"alpha": a.swiglu_alpha, "limit": a.swiglu_limit}
        (s,) = self.algebra.call("clamped_swiglu", u, e.row_weights, **rule)
        return s

    def expert_down(self, s: Any, w: Any, e: Any) -> Any:
        (d,) = self.algebra.call("expert_down", s, w.down, e.ends)
        if self.plan.shape.family.expert_bias:
            bias = (e.row_weights, w.down_bias, e.ends)
            (d,) = self.algebra.call("add_weighted_bias", d, *bias)
        return d

    def combine(self, d: Any, e: Any) -> Any:
        return self.experts.combine(self.algebra, d, e)

    # ---- feed-forwards that every token visits -----------------------------------------------

    def dense_up(self, h: Any, w: Any) -> Any:
        return self._up(h, w, "W")

    def dense_swiglu(self, u: Any) -> Any:
        return self._gate(u, "W")

    def dense_down(self, s: Any, w: Any) -> Any:
        return self._down(s, w, "W")

    def shared_up(self, h: Any, w: Any) -> Any:
        return self._up(h, w, "w")

    def shared_swiglu(self, u: Any) -> Any:
        return self._gate(u, "w")

    def shared_down(self, s: Any, w: Any) -> Any:
        return self._down(s, w, "w")

    def shared_gate(self, f: Any, h: Any, w: Any) -> Any:
        z, _ = self.algebra.call("shared_gate", f, h, w)
        return z

    def _up(self, h: Any, w: Any, width: str) -> Any:
        renames = {**self.dense.renames, "A": "D", "D": f"2{width}"}
        (u,) = self.algebra.call("project", self.dense.enter(self.algebra, h), w, renames=renames)
        return u

    def _gate(self, u: Any, width: str) -> Any:
        renames = {**self.dense.renames, "2W": f"2{width}", "W": width}
        (s,) = self.algebra.call("dense_swiglu", u, renames=renames)
        return s

    def _down(self, s: Any, w: Any, width: str) -> Any:
        renames = {**self.dense.renames, "A": width}
        (y,) = self.algebra.call("project", s, w, renames=renames)
        return self.dense.leave(self.algebra, y)

    # ---- the model around the layers -------------------------------------------------------------

    def embed(self, tokens: Any, w: Any) -> Any:
        (x,) = self.algebra.call("embed", tokens, w)
        return x

    def rope_table(self, positions: Any) -> Any:
        a, plan = self.plan.arithmetic, self.plan
        renames = {"T": self.spread.projected.tokens}
        table = {"theta": a.rope_theta, "head_dim": plan.shape.rotated, "dtype": plan.accumulation}
        if a.yarn is None:
            return self.algebra.call("rope_table", positions, **table, renames=renames)
        return self.algebra.call(
            "yarn_rope_table", positions, **table, **asdict(a.yarn), renames=renames
        )

    def head_logits(self, h: Any, w: Any) -> Any:
        (y,) = self.algebra.call("project", h, w, renames={"A": "D", "D": "V"})
        return y

    def add_bias(self, x: Any, b: Any) -> Any:
        return self._biased(x, b, {"D": "V"})

    def biased_cross_entropy(self, h: Any, w: Any, b: Any, targets: Any) -> Any:
        (total,) = self.algebra.call(
            "biased_cross_entropy", h, w, b, targets, self.context.divisor, self.context.loss,
            chunk=loss_rows(self.plan),
        )  # fmt: skip
        return total

    def cross_entropy(self, h: Any, w: Any, targets: Any) -> Any:
        (total,) = self.algebra.call(
            "cross_entropy", h, w, targets, self.context.divisor, self.context.loss,
            chunk=loss_rows(self.plan),
        )  # fmt: skip
        return total

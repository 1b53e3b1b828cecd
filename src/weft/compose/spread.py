"""Which strategies a plan's layout means: one for attention, one for experts, one for the rest."""

from weft.compose.plan import Plan, is_all_gather
from weft.parallel.context import Zigzag
from weft.parallel.deduplicate import ByVisits
from weft.parallel.expert import (
    ByExchange,
    ByGathering,
    ByGatheringWithin,
    EveryExpert,
    plan_all,
    plan_kept,
)
from weft.parallel.layout import Attention, Dispatch, FeedForward
from weft.parallel.sequence import Together, Ulysses
from weft.parallel.strategy import AttentionStrategy, DenseStrategy, ExpertStrategy, InPlace
from weft.parallel.tensor import HeadSlices, WidthSlices


def attention_of(plan: Plan) -> AttentionStrategy:
    """How attention is spread."""
    shape, layout = plan.shape, plan.layout
    if layout.sp == 1:
        return Together(heads=shape.heads, kv_heads=shape.kv_heads)
    match layout.attention:
        case Attention.SP:
            return Ulysses(
                sp=layout.sp, heads=shape.heads, kv_heads=shape.kv_heads, split=plan.heads
            )
        case Attention.TP:
            return HeadSlices(split=plan.heads, sp_rank=layout.sp_rank(plan.rank))
        case Attention.CP:
            return Zigzag(
                sp=layout.sp,
                heads=shape.heads,
                kv_heads=shape.kv_heads,
                sequences=plan.micro_batch,
            )


def feed_forward_of(plan: Plan) -> tuple[ExpertStrategy, DenseStrategy]:
    """How routed experts are spread, and how feed-forwards that every token visits are."""
    shape, layout = plan.shape, plan.layout
    count, top_k = shape.experts, shape.top_k
    rows = plan_kept if plan.arithmetic.balance.capacity > 0 else plan_all
    if layout.ffn is FeedForward.TP and layout.sp > 1:
        sliced = WidthSlices(num_experts=count, top_k=top_k)
        return sliced, sliced
    if layout.ep == 1:
        return EveryExpert(num_experts=count, top_k=top_k, plan=rows), InPlace()
    if is_all_gather(layout):
        held: dict[str, int] = {"first": plan.first_expert, "local": plan.local_experts}
        within = plan.bounded_rows
        if within:
            return ByGatheringWithin(rows=within, top_k=top_k, **held), InPlace()
        return ByGathering(top_k=top_k, **held), InPlace()
    if layout.dispatch is Dispatch.DEDUPLICATED:
        visits = ByVisits(ranks=layout.ep, local=plan.local_experts, top_k=top_k)
        return visits, InPlace()
    return ByExchange(num_experts=count, top_k=top_k, plan=rows), InPlace()

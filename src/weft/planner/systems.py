"""The two systems of the paper's evaluation as jobs, and what its ablations switch off.

megascale   Ulysses attention, whole experts over the node by all-gather and reduce-scatter,
            overlapped orders, forward pairs fused, kernels of its own for rows and for sums of
            experts' gradients, BF16 gradients; one layer a chunk (4 at 15 stages)
megatron    tensor parallelism in attention and experts, one operator after the other, FP32
            gradients; rows are gathered whole (index_select) and summed by the framework; one
            chunk, because the activations of interleaved micro-batches do not fit beside its
            routed tokens
plain       the code base of megascale without fused pairs
unfused     the same with row movement by the framework
"""

from collections.abc import Mapping
from functools import cache

from weft.compose.plan import Plan, Update
from weft.compose.recipe import arithmetic, shape
from weft.config.presets import preset
from weft.model.families import Shape
from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout
from weft.parallel.sync import Sync, Wire
from weft.planner.simulate import Job, Regime
from weft.planner.work import Way

TABLE_2 = (
    "internal-352b",
    "mixtral-8x7b",
    "mixtral-8x22b",
    "hunyuan-large",
    "phi-3.5-moe",
    "deepseekmoe",
)
SEQUENCE, NODE, STAGES, CHUNKS = 8192, 8, 15, 4
MEGASCALE = Regime(fused=True)
PLAIN = Regime(fused=False)
UNFUSED = Regime(fused=False, streamed=frozenset())
MEGATRON = Regime(fused=False, streamed=frozenset((Way.ROWS,)), sums_apart=True)
GATHERED = ("y_2", "y_6")
BUCKET = 10**9  # elements: a bucket a layer and residence
STRATEGIES: Mapping[str, tuple[Attention, FeedForward]] = {
    "tp+tp": (Attention.TP, FeedForward.TP),
    "sp+tp": (Attention.SP, FeedForward.TP),
    "tp+ep": (Attention.TP, FeedForward.EP),
    "sp+ep": (Attention.SP, FeedForward.EP),
}


@cache
def model(name: str) -> Shape:
    """The shape of a model of Table 2."""
    return shape(preset(name))


def plan(
    name: str,
    *,
    dp: int,
    batch: int,
    stages: int = 1,
    chunks: int = 1,
    strategy: str = "sp+ep",
    order: str = "overlapped",
    dispatch: Dispatch = Dispatch.ALL_GATHER,
    remat: str | tuple[str, ...] = "none",
    wire: Wire = Wire.BF16,
) -> Plan:
    """One node's layout of the paper for a model, `dp` of them, `batch` sequences a step."""
    attention, ffn = STRATEGIES[strategy]
    return Plan(
        shape=model(name),
        arithmetic=arithmetic(preset(name)),
        layout=Layout(
            pp=stages,
            dp=dp,
            node=NODE,
            sp=NODE,
            ep=NODE if ffn is FeedForward.EP else 1,
            dispatch=dispatch,
            attention=attention,
            ffn=ffn,
            pipeline="interleaved" if chunks > 1 else "1f1b",
            chunks=chunks,
            layers=even(model(name).layers, stages * chunks),
        ),
        rank=0,
        sequence=SEQUENCE,
        micro_batch=1,
        micro_batches=batch,
        precision="bfloat16",
        order=order,
        update=Update(beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0),
        remat=remat,
        sync=Sync(gradients=wire, bucket=BUCKET),
    )


def even(layers: int, parts: int) -> tuple[int, ...]:
    """Layers cut evenly, as the paper does it."""
    return (layers // parts,) * parts


def system(name: str, of: str, *, stages: int, dp: int, batch: int, chunks: int = 1) -> Job:
    """A job of one of the two systems."""
    if of == "megatron":  # its sequence parallelism gathers inputs again in the backward
        tensor = plan(
            name,
            dp=dp,
            batch=batch,
            stages=stages,
            strategy="tp+tp",
            order="serial",
            remat=GATHERED,
            wire=Wire.FP32,
        )
        return Job(plan=tensor, regime=MEGATRON)
    paper = plan(name, dp=dp, batch=batch, stages=stages, chunks=chunks, remat="selective")
    return Job(plan=paper, regime=MEGASCALE)

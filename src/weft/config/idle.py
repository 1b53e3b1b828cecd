"""What a recipe asks for that no rank of its layout would ever read.

    key                                     read by nobody where
    parallel.attention, parallel.ffn        parallel.sp = 1: nothing is cut over one rank
    parallel.dispatch                       parallel.ep = 1: every expert is here
    parallel.row_bound                      the number of rows is known, or asked for anyway
    parallel.zero, compression.gradients    parallel.dp * parallel.sp = 1: there are no replicas
    parallel.bucket_elements                the same: what no other rank holds is not summed
    parallel.node                           its blocks are of one rank, or hold the whole stage
    parallel.pipeline                       parallel.pp = 1; interleaved with parallel.chunks = 1
    compression.dispatch and its like       parallel.ep = 1: nothing crosses
    compression.scales                      nothing is in eight bits
    overlap.across                          a layer's backward starts with no collective, or no two
                                            layers follow one another on a stage
    overlap.merge                           in a pipeline, and with one micro-batch a rank

Not here: what describes the model, and the order of operators, which every layout has.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from weft.config.compression import CROSSINGS, CompressionConfig
from weft.config.overlap import OverlapConfig
from weft.config.parallel import BUCKET, ParallelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Idle:
    """A key without a reader: its value, the reason, and the value that says the same."""

    key: str
    value: object
    rule: str
    legal: object


def idle_keys(
    parallel: ParallelConfig,
    compression: CompressionConfig,
    overlap: OverlapConfig,
    *,
    layers: int,
    micro_batches: int,
) -> Iterator[Idle]:
    """Every key that nobody reads in a layout of so many layers and micro-batches a rank."""
    yield from _idle_degrees(parallel)
    yield from _idle_node(parallel)
    yield from _idle_wires(parallel, compression)
    if overlap.across and (rule := _no_crossing(parallel, layers)):
        yield Idle(key="overlap.across", value=True, rule=rule, legal=False)
    if overlap.merge and (rule := _no_merging(parallel, micro_batches)):
        yield Idle(key="overlap.merge", value=True, rule=rule, legal=False)


def _idle_degrees(parallel: ParallelConfig) -> Iterator[Idle]:
    settings = (
        ("attention", "sp", parallel.sp, "parallel.sp"),
        ("ffn", "ep", parallel.sp, "parallel.sp"),
        ("pipeline", "1f1b", parallel.pp, "parallel.pp"),
        ("zero", 1, parallel.stage_ranks, "parallel.dp * parallel.sp"),
        ("bucket_elements", BUCKET, parallel.stage_ranks, "parallel.dp * parallel.sp"),
    )
    for name, plain, degree, axis in settings:
        value = getattr(parallel, name)
        if degree == 1 and value != plain:
            rule = f"has no meaning with {axis} = 1"
            yield Idle(key=f"parallel.{name}", value=value, rule=rule, legal=plain)
    if parallel.pipeline == "interleaved" and parallel.pp > 1 and parallel.chunks == 1:
        rule = "is 1f1b with parallel.chunks = 1, which leaves nothing to go round"
        yield Idle(key="parallel.pipeline", value="interleaved", rule=rule, legal="1f1b")
    if parallel.row_bound and (parallel.ep == 1 or parallel.dispatch != "all_gather"):
        rule = 'needs parallel.ep above 1 and parallel.dispatch = "all_gather": no other waits so'
        yield Idle(key="parallel.row_bound", value=parallel.row_bound, rule=rule, legal=0.0)
    if parallel.ep == 1 and parallel.dispatch not in ("all_to_all", "auto"):
        rule = "has no meaning with parallel.ep = 1, where every rank has every expert"
        yield Idle(key="parallel.dispatch", value=parallel.dispatch, rule=rule, legal="all_to_all")


def _idle_node(parallel: ParallelConfig) -> Iterator[Idle]:
    ranks = parallel.stage_ranks
    if parallel.node in (1, ranks):
        rule = (
            "changes nothing: it must be more than one rank and less than the "
            f"parallel.dp * parallel.sp ({ranks}) of a stage"
        )
        yield Idle(key="parallel.node", value=parallel.node, rule=rule, legal=0)


def _idle_wires(parallel: ParallelConfig, compression: CompressionConfig) -> Iterator[Idle]:
    if compression.gradients != "fp32" and parallel.stage_ranks == 1:
        rule = "has no wire with parallel.dp * parallel.sp = 1: there are no replicas"
        key, value = "compression.gradients", compression.gradients
        yield Idle(key=key, value=value, rule=rule, legal="fp32")
    for crossing in CROSSINGS if parallel.ep == 1 else ():
        if getattr(compression, crossing) != "none":
            rule = "has no wire with parallel.ep = 1, where every rank has every expert"
            yield Idle(key=f"compression.{crossing}", value="fp8", rule=rule, legal="none")
    if compression.scales != "token" and not compression.encodes:
        rule = f"has no meaning where none of {', '.join(CROSSINGS)} is in eight bits"
        yield Idle(key="compression.scales", value=compression.scales, rule=rule, legal="token")


def _no_crossing(parallel: ParallelConfig, layers: int) -> str:
    sliced = parallel.ffn == "tp" and parallel.sp > 1
    if parallel.ep == 1 and not sliced:
        return 'needs parallel.ep above 1, or parallel.ffn = "tp": what a backward starts with'
    if layers <= parallel.pp * parallel.chunks:
        return f"needs two layers of model.layers ({layers}) behind one another on a stage"
    return ""


def _no_merging(parallel: ParallelConfig, micro_batches: int) -> str:
    if parallel.pp > 1:
        return (
            "needs parallel.pp = 1: between micro-batches of a pipeline stages talk to each other"
        )
    return "needs two micro-batches a rank" if micro_batches == 1 else ""

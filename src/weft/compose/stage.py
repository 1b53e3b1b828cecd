"""What one rank of a pipeline holds: its chunks of the model, cut by FLOPs or as a recipe says.

Virtual stage `c pp + r` of the model is chunk `c` of rank `r` of the pipeline. The embedding is in
front of the first one, the final norm and the head behind the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from weft.compose.plan import Plan
from weft.errors import LayoutError
from weft.model.count import head_flops, layer_flops
from weft.model.params import Parameter, parameters
from weft.parallel.pipeline import cut_layers, spans
from weft.schedule.pipeline import Order, Pipeline, forwards, order_of
from weft.schedule.pipeline import validate as validate_pipeline
from weft.schedule.transfer import Piece, check, pieces


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One virtual stage: its layers, and whether the embedding or the head is with them."""

    layers: range
    first: bool
    last: bool


def chunks_of(plan: Plan) -> tuple[Chunk, ...]:
    """The chunks of a plan's rank, in the order of the model."""
    pipeline = plan.schedule
    layers = spans(layer_counts(plan))
    rank = plan.layout.pp_rank(plan.rank)
    stages = (pipeline.virtual_stage(rank, chunk) for chunk in range(pipeline.chunks))
    return tuple(
        Chunk(layers=layers[at], first=at == 0, last=at == pipeline.virtual_stages - 1)
        for at in stages
    )


def layer_counts(plan: Plan) -> tuple[int, ...]:
    """The layers of every virtual stage.

    Raises:
        LayoutError: a recipe's own cut does not hold every layer once.
    """
    shape, layout, stages = plan.shape, plan.layout, plan.schedule.virtual_stages
    if not layout.layers:
        costs = [layer_flops(shape, i, sequence=plan.sequence) for i in range(shape.layers)]
        return cut_layers(costs, stages, last=head_flops(shape))
    if len(layout.layers) != stages or sum(layout.layers) != shape.layers or min(layout.layers) < 1:
        even = cut_layers([1.0] * shape.layers, stages)
        raise LayoutError(
            f"parallel.layers = {list(layout.layers)}: expected a number for each of the {stages} "
            f"stages (pp * chunks), {shape.layers} layers together; try {list(even)}"
        )
    return layout.layers


def owned(plan: Plan) -> tuple[Parameter, ...]:
    """The parameters of a plan's rank, in order of use; a tied embedding is at both ends."""
    layout, shape = plan.layout, plan.shape
    chunks = chunks_of(plan)
    mine = {f"layers.{i}" for chunk in chunks for i in chunk.layers}
    mine |= {"embed"} if chunks[0].first else set()
    mine |= {"head", *(("embed",) if shape.tied else ())} if chunks[-1].last else set()
    every = parameters(
        shape,
        ep=layout.ep,
        ep_rank=layout.ep_rank(plan.rank),
        attention=plan.attention_cut,
        ffn=plan.ffn_cut,
    )
    return tuple(parameter for parameter in every if parameter.segment in mine)


def pieces_of(plan: Plan) -> tuple[Piece, ...]:
    """What a plan's rank does in a step: work, and the moves around it.

    Raises:
        DeadlockError: the ranks of the pipeline would stand still.
    """
    pipeline = plan.schedule
    orders = [order_of(pipeline, rank) for rank in range(pipeline.stages)]
    return _played(pipeline, orders, plan.layout.pp_rank(plan.rank))


def forward_pieces_of(plan: Plan) -> tuple[Piece, ...]:
    """The same of the forward of one micro-batch."""
    pipeline = replace(plan.schedule, micro_batches=1)
    orders = [forwards(pipeline)] * pipeline.stages
    return _played(pipeline, orders, plan.layout.pp_rank(plan.rank))


def _played(pipeline: Pipeline, orders: Sequence[Order], rank: int) -> tuple[Piece, ...]:
    """The pieces of a rank, after all ranks have been played against each other."""
    ranks = [pieces(pipeline, orders, r) for r in range(pipeline.stages)]
    check(ranks)
    return ranks[rank]


def is_shared(plan: Plan, bucket: str) -> bool:
    """Whether a bucket is at both ends of the pipeline: that of an embedding tied to the head."""
    return plan.shape.tied and plan.layout.pp > 1 and bucket.partition(".")[0] == "embed"


def is_copy(plan: Plan, bucket: str) -> bool:
    """Whether another stage answers for a bucket: it counts in the norm and in files there."""
    return is_shared(plan, bucket) and plan.layout.pp_rank(plan.rank) > 0


def validate(plan: Plan) -> Pipeline:
    """The pipeline of a plan, if it exists for its model.

    Raises:
        LayoutError: an order without these chunks or micro-batches, or more stages than layers.
    """
    pipeline = validate_pipeline(plan.schedule)
    layer_counts(plan)
    return pipeline

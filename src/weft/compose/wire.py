"""Which collectives of a layer travel in eight bits, and with which scales.

    crossing        all-to-all                 all-gather
    dispatch        all_to_all_rows "rows"     all_gather "tokens"        a scale a token
    combine         all_to_all_rows "outputs"  reduce_scatter "outputs"   a scale a token
    combine_grad    all_to_all_rows "outputs"  all_gather "outputs"       a scale for 128 tokens
    dispatch_grad   all_to_all_rows "rows"     reduce_scatter "tokens"    of a channel

With scales by block all four have one for 128 channels of a token. A reduce-scatter becomes an
all-to-all whose receiver sums: nothing is ever added in eight bits.

Paper: 4.2.
"""

from collections.abc import Mapping

from weft.compose.plan import BLOCK, CHANNEL_GROUP, Plan
from weft.graph.program import Program
from weft.schedule.encode import Channels, Crossing, Ends, Rows, Scales, encode

_DISPATCH = (("all_to_all_rows", "rows"), ("all_gather", "tokens"))
_COMBINE = (("all_to_all_rows", "outputs"), ("reduce_scatter", "outputs"))
_COMBINE_GRAD = (("all_to_all_rows", "outputs"), ("all_gather", "outputs"))
_DISPATCH_GRAD = (("all_to_all_rows", "rows"), ("reduce_scatter", "tokens"))


def forward(plan: Plan, program: Program) -> Program:
    """A layer's forward with its crossings encoded."""
    said = plan.crossings
    chosen = {_DISPATCH: said.dispatch, _COMBINE: said.combine}
    return encode(program, _named(chosen, _by_row(plan)), _ends(plan))


def backward(plan: Plan, program: Program) -> Program:
    """A layer's backward with its crossings encoded."""
    said = plan.crossings
    chosen = {_COMBINE_GRAD: said.combine_grad, _DISPATCH_GRAD: said.dispatch_grad}
    scales = Channels(group=CHANNEL_GROUP) if said.scales == "token" else _by_row(plan)
    return encode(program, _named(chosen, scales), _ends(plan))


def _named(chosen: Mapping[tuple[Crossing, ...], str], scales: Scales) -> Mapping[Crossing, Scales]:
    return {one: scales for crossing, bits in chosen.items() if bits == "fp8" for one in crossing}


def _by_row(plan: Plan) -> Rows:
    width = plan.shape.hidden
    return Rows(columns=width if plan.crossings.scales == "token" else BLOCK, width=width)


def _ends(plan: Plan) -> Ends:
    return Ends(ranks=plan.layout.ep, tokens=plan.local_tokens, dtype=plan.precision)

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
from weft.errors import ProgramError
from weft.graph.program import Program
from weft.schedule.encode import Channels, Crossing, Ends, Rows, Scales, encode

_DISPATCH = (("all_to_all_rows", "rows"), ("all_gather", "tokens"))
_COMBINE = (("all_to_all_rows", "outputs"), ("reduce_scatter", "outputs"))
_COMBINE_GRAD = (("all_to_all_rows", "outputs"), ("all_gather", "outputs"))
_DISPATCH_GRAD = (("all_to_all_rows", "rows"), ("reduce_scatter", "tokens"))


def forward(plan: Plan, program: Program) -> Program:
    """A routed layer's forward with its crossings encoded."""
    said = plan.crossings
    chosen = {_DISPATCH: said.dispatch, _COMBINE: said.combine}
    return _encoded(plan, program, chosen, _by_row(plan))


def backward(plan: Plan, program: Program) -> Program:
    """A routed layer's backward with its crossings encoded."""
    said = plan.crossings
    chosen = {_COMBINE_GRAD: said.combine_grad, _DISPATCH_GRAD: said.dispatch_grad}
    scales = Channels(group=CHANNEL_GROUP) if said.scales == "token" else _by_row(plan)
    return _encoded(plan, program, chosen, scales)


def _encoded(
    plan: Plan, program: Program, chosen: Mapping[tuple[Crossing, ...], str], scales: Scales
) -> Program:
    """The program with its chosen crossings encoded, each of which must be there."""
    wanted = [crossing for crossing, bits in chosen.items() if bits == "fp8"]
    if not wanted or plan.layout.ep == 1:  # every expert is here: nothing crosses
        return program
    here = {(task.body, str(task.attributes.get("label", ""))) for task in program.tasks}
    for crossing in wanted:
        if here.isdisjoint(crossing):
            raise ProgramError(
                f"{program.name}: found no collective to encode, expected one of "
                f"{', '.join(f'{body} {label!r}' for body, label in crossing)}; "
                "compose/wire.py lists the crossings of each dispatch"
            )
    named = {one: scales for crossing in wanted for one in crossing}
    return encode(program, named, _ends(plan))


def _by_row(plan: Plan) -> Rows:
    width = plan.shape.hidden
    return Rows(columns=width if plan.crossings.scales == "token" else BLOCK, width=width)


def _ends(plan: Plan) -> Ends:
    return Ends(ranks=plan.layout.ep, tokens=plan.local_tokens, dtype=plan.precision)

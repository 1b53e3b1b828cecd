"""Which pairs of a layer are cut into chunks, and what cannot be.

A pair that a layout does not have (experts are here, a rank has all heads) has nothing to cut.
"""

from collections.abc import Iterator

from weft.compose.plan import Plan
from weft.errors import LayoutError
from weft.graph.program import Program
from weft.parallel.layout import Attention, Dispatch, FeedForward
from weft.schedule.decompose import (
    BACKWARD,
    COLUMNS,
    FORWARD,
    TOKENS,
    Chunks,
    Pair,
    decompose,
)


def forward(plan: Plan, program: Program) -> Program:
    """A layer's forward with the pairs of the plan in chunks."""
    return _cut(plan, program, [pair for name, pair in FORWARD.items() if name in plan.split])


def backward(plan: Plan, program: Program) -> Program:
    """A layer's backward with its pairs of the plan in chunks."""
    return _cut(plan, program, [pair for name, pair in BACKWARD.items() if name in plan.split])


def validate(plan: Plan) -> Plan:
    """The plan, if its pairs can be cut.

    Raises:
        LayoutError: a pair that has no chunks in this layout, or chunks that are not equal.
    """
    for fault in _faults(plan):
        raise LayoutError(f"overlap.split = {list(plan.split)}: {fault}")
    return plan


def _faults(plan: Plan) -> Iterator[str]:
    layout, asked = plan.layout, frozenset(plan.split)
    for name in plan.split:
        if name not in (*FORWARD, *BACKWARD):
            yield f"found {name!r}, expected one of {', '.join((*FORWARD, *BACKWARD))}"
    around = [name for name in plan.split if name.startswith(("qkv", "out"))]
    if around and layout.sp > 1 and layout.attention is not Attention.SP:
        yield f"attention = {layout.attention.value} has no {around[0]} to cut; try attention = sp"
    experts = [name for name in plan.split if name not in around]
    if experts and layout.sp > 1 and layout.ffn is FeedForward.TP:
        yield f"ffn = tp has no {experts[0]} to cut; try ffn = ep"
    if "dispatch" in asked and layout.ep > 1 and layout.dispatch is Dispatch.DEDUPLICATED:
        yield "tokens that travel once a rank are not cut; try dispatch = all_to_all"
    for name in experts:
        if layout.ep > 1 and getattr(plan.crossings, name) != "none":
            yield f"{name} in eight bits crosses whole; leave it out"
    pairs = {**FORWARD, **BACKWARD}
    cuts = [pairs[name].cut for name in plan.split]
    if TOKENS in cuts and plan.local_tokens % plan.chunks:
        yield _uneven(plan, plan.local_tokens, "tokens of a rank")
    if COLUMNS in cuts and plan.shape.hidden % plan.chunks:
        yield _uneven(plan, plan.shape.hidden, "columns of the model's width")


def _uneven(plan: Plan, count: int, what: str) -> str:
    legal = max(d for d in range(1, plan.chunks + 1) if count % d == 0)
    return f"chunks = {plan.chunks} does not divide the {count} {what}; try chunks = {legal}"


def _cut(plan: Plan, program: Program, pairs: list[Pair]) -> Program:
    chunks = Chunks(
        count=plan.chunks,
        tokens=plan.local_tokens,
        blocks={"N": plan.layout.sp, "U": plan.layout.ep},
    )
    for pair in pairs:
        program = decompose(program, pair, chunks)
    return program

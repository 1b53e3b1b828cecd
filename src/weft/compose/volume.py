"""The volume of one layer's forward three ways: as printed, as derived, and in its program.

The program's bytes are those of its collectives at balanced routing (`compose.price`), which is
what `weft verify` predicts and counts on the wire; the formulas are `parallel.volume`. They are in
elements of the payload: tokens, rows and heads, without indices and gate weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from weft.compose.plan import Plan, sizes
from weft.compose.price import BYTES, wire_bytes
from weft.compose.step import training_step
from weft.graph.program import Program
from weft.model.families import Kind
from weft.parallel.layout import FeedForward
from weft.parallel.volume import Volume, attention_volume, experts_volume
from weft.schedule.action import is_collective


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One half of a layer: its formulas, and the bytes of its payload in the forward program."""

    volume: Volume
    counted_bytes: float

    @property
    def derived_bytes(self) -> float:
        """The derived elements in the width of activations."""
        return float(self.volume.derived) * BYTES["act"]


def volumes(plan: Plan) -> Iterator[Line]:
    """Each half of the last layer that communicates, a routed one where the model has one."""
    shape, layout = plan.shape, plan.layout
    kind = shape.kind(shape.layers - 1)
    program = training_step(plan).templates[f"{kind}.forward"].program
    if layout.sp > 1:
        volume = attention_volume(
            layout,
            tokens=plan.tokens,
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
        )
        yield Line(volume=volume, counted_bytes=_counted(plan, program, volume))
    sliced = layout.ffn is FeedForward.TP and layout.sp > 1
    if kind is not Kind.DENSE and (layout.ep > 1 or sliced):
        volume = experts_volume(layout, tokens=plan.tokens, hidden=shape.hidden, top_k=shape.top_k)
        if sliced and kind in (Kind.SHARED_MOE, Kind.GATED_MOE):
            volume = _with_shared(volume)
        yield Line(volume=volume, counted_bytes=_counted(plan, program, volume))


def _with_shared(volume: Volume) -> Volume:
    """The volume with shared experts cut likewise: they read what is gathered for the routed ones
    and scatter sums of their own.
    """
    text = f"{volume.derived_text} 3/2, with shared experts"
    return replace(volume, derived_text=text, derived=volume.derived * Fraction(3, 2))


def _counted(plan: Plan, program: Program, volume: Volume) -> float:
    """Bytes of the collectives that carry the payload of a volume."""
    n = sizes(plan)
    return sum(
        wire_bytes(task, program, n, BYTES)
        for task in program.tasks
        if is_collective(task)
        and task.group == volume.axis
        and task.attributes["label"] in volume.labels
    )

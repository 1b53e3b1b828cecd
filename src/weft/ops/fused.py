"""Fused operators by their definition: the parts, one after another.

No reference of a fused operator is written by hand. Built from the bodies of a table, it gives the
bits of that table's parts.
"""

from collections.abc import Callable, Mapping
from typing import Any

from weft.graph.fused import FUSED, Fused, Part

Bodies = Mapping[str, Callable[..., Any]]


def sequences(bodies: Bodies) -> dict[str, Callable[..., Any]]:
    """Returns every fused operator as the sequence of its parts in these bodies."""
    return {name: in_sequence(fused, bodies) for name, fused in FUSED.items()}


def in_sequence(fused: Fused, bodies: Bodies) -> Callable[..., Any]:
    """Returns the body that runs the parts of a fused operator in turn."""
    calls = [(part, bodies[part.body]) for part in fused.parts]

    def run(*inputs: Any, **attributes: Any) -> Any:
        values = dict(zip(fused.reads, inputs, strict=True))
        for part, body in calls:
            values.update(_call(part, body, values, attributes))
        given = [values[name] for name in fused.gives]
        return tuple(given) if len(given) > 1 else given[0]

    run.__qualname__ = run.__name__ = "in_sequence"
    return run


def _call(
    part: Part, body: Callable[..., Any], values: Mapping[str, Any], attributes: Mapping[str, Any]
) -> dict[str, Any]:
    own = {name: attributes[name] for name in part.attributes}
    made = body(*(values[name] for name in part.inputs), **own)
    results = made if len(part.outputs) > 1 else (made,)
    return dict(zip(part.outputs, results, strict=True))

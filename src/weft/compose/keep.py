"""What a layer keeps for its backward, by the policy of a plan, and what that weighs.

    none       everything that gradients read
    selective  the fewest bytes without running a product or attention twice: the paper's keep-set
    full       the fewest bytes of all: the layer's input, and what the router decided
    auto       the least time (by task prices) that fits into `memory` bytes of the rank
    [names]    these values are made again, all others are kept

`schedule.keep` chooses, `schedule.remat` rewrites; this file has the sizes and the prices. The
bytes are those of one micro-batch at balanced routing, the layer's input among them. What a plan's
fused operators make inside (`schedule.fuse`) is not kept under any policy.

Paper: 2.2.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from weft.compose.plan import Plan, sizes
from weft.compose.price import BYTES, Nominal, price, value_bytes
from weft.compose.segment import Segment
from weft.compose.stage import chunks_of, pieces_of
from weft.errors import ConfigError
from weft.graph.backward import Differentiated
from weft.graph.program import Program, Task
from weft.model.families import Kind
from weft.schedule import keep
from weft.schedule.fuse import fuse
from weft.schedule.pipeline import Pass, Work
from weft.schedule.remat import recipes, rematerialise

_WIDTHS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "bfloat16": dict(BYTES),
        "float32": {**BYTES, "act": 4},
        "float64": {**BYTES, "act": 8, "acc": 8},
    }
)
# Outputs that are an input in another layout: blocks a rank, or columns seen as heads.
_COPIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "pack_heads": ("p",),
        "split_heads": ("q", "k", "v"),
        "join_heads": ("a",),
        "rotate": ("v",),
        "norm_rotate": ("v",),
    }
)
_PICOSECONDS = 1e12  # in a second: cuts compare whole numbers


def rematerialised(plan: Plan, layers: Mapping[Kind, Segment]) -> Mapping[Kind, Segment]:
    """The layers of a model with the values of the plan's policy made again, by the plan's fused
    operators.

    Raises:
        ConfigError: the policy names a value that no layer can make again, or memory is too small.
    """
    return {kind: _fused(plan, layer) for kind, layer in _by_policy(plan, layers).items()}


def _by_policy(plan: Plan, layers: Mapping[Kind, Segment]) -> Mapping[Kind, Segment]:
    match plan.remat:
        case "none":
            return layers
        case "selective" | "full" | "auto":
            return {
                kind: _apply(s, choose(plan, s, plan.remat).again) for kind, s in layers.items()
            }
        case str():
            raise AssertionError(f"{plan.remat=}")
        case names:
            _check_names(names, layers)
            return {
                kind: _apply(s, frozenset(names) & recipes(s.forward).keys())
                for kind, s in layers.items()
            }


def choose(plan: Plan, layer: Segment, policy: str) -> keep.Choice:
    """What a policy keeps and makes again of one layer."""
    match policy:
        case "selective":
            return keep.lightest(_question(plan, layer, lambda task: not keep.is_heavy(task)))
        case "full":
            return keep.lightest(_question(plan, layer, lambda _: True))
        case "auto":
            return _within(plan, layer)
        case _:
            raise AssertionError(f"{policy=}")


def dtype_widths(plan: Plan) -> Mapping[str, int]:
    """Bytes of an element by kind of dtype, in the precision of a plan."""
    return _WIDTHS[plan.precision]


def kept_bytes(plan: Plan, forward: Program, names: Iterable[str]) -> Mapping[str, int]:
    """Bytes of each of these values for one micro-batch, largest first."""
    n, widths = sizes(plan), dtype_widths(plan)
    found = {name: value_bytes(name, forward, n, widths) for name in names}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def held_bytes(plan: Plan, layer: Segment) -> Mapping[str, int]:
    """What a layer as it stands holds from its forward to its backward: its input and what it
    keeps.
    """
    return kept_bytes(plan, layer.forward, ("x", *layer.forward.kept))


def activations(forward: Program) -> tuple[str, ...]:
    """Every activation of a layer once, whatever layouts it appears in: its input and what its
    operators make.

    Paper: 2.2, the 18 tensors of Figure 9 for a layer with experts by all-gather.
    """
    made = (
        name
        for task in forward.tasks
        for port, name in zip(task.op.outputs, task.outputs, strict=True)
        if port.kind == "act" and port.name not in _COPIES.get(task.op.name, ())
    )
    return ("x", *made)


def _question(plan: Plan, layer: Segment, allowed: Callable[[Task], bool]) -> keep.Question:
    n, widths, nominal = sizes(plan), dtype_widths(plan), Nominal()
    forward = layer.forward
    return keep.ask(
        _derived(layer),
        size=lambda name: value_bytes(name, forward, n, widths),
        work=lambda task: round(price(task, forward, n, nominal) * _PICOSECONDS),
        allowed=allowed,
    )


def _within(plan: Plan, layer: Segment) -> keep.Choice:
    """The choice for a layer's share of the memory, the same for all that are held at once."""
    question = _question(plan, layer, lambda _: True)
    own, layers = kept_bytes(plan, layer.forward, ("x",))["x"], held_layers(plan)
    share = plan.memory // layers - own
    least = keep.lightest(question).kept_bytes
    if least > share:
        raise ConfigError(
            f"overlap.memory = {plan.memory}: too little for what {layers} layers keep for their "
            f"backward; nearest legal value: overlap.memory = {(least + own) * layers}"
        )
    return keep.cheapest(question, budget=share)


def held_layers(plan: Plan) -> int:
    """The most layers, over all micro-batches in flight, that wait for their backward at once."""
    layers = [len(chunk.layers) for chunk in chunks_of(plan)]
    held = most = 0
    for piece in pieces_of(plan):
        if isinstance(piece, Work) and piece.kind is not Pass.WEIGHT:
            held += layers[piece.chunk] * (1 if piece.kind is Pass.FORWARD else -1)
            most = max(most, held)
    return most + plan.merge  # a pair makes one before it lets go of the other


def _apply(layer: Segment, again: frozenset[str]) -> Segment:
    made = rematerialise(_derived(layer), again)
    return Segment(forward=made.forward, backward=made.backward)


def _fused(plan: Plan, layer: Segment) -> Segment:
    made = fuse(_derived(layer), plan.fuses)
    return Segment(forward=made.forward, backward=made.backward)


def _derived(layer: Segment) -> Differentiated:
    assert layer.backward is not None, f"{layer.forward.name} has no backward"
    return Differentiated(forward=layer.forward, backward=layer.backward)


def _check_names(names: Iterable[str], layers: Mapping[Kind, Segment]) -> None:
    legal = sorted({name for layer in layers.values() for name in recipes(layer.forward)})
    for name in names:
        if name not in legal:
            raise ConfigError(
                f"overlap.remat: found the value {name!r}, which no layer can make again; "
                f"legal ones: {', '.join(legal)}"
            )

"""The templates of a step, recorded and differentiated: embedding, layers, head and update.

A template is bound and priced once and run many times: once a layer and micro-batch. Its inputs
carry prefixes that say who provides them: `w.` a parameter, `acc.` a gradient accumulator, `s.` a
static tensor, anything else the step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace

from weft.compose import wire
from weft.compose.lower import Context, Lowering
from weft.compose.plan import LOADS, Plan
from weft.compose.replicas import arrives_in_flight
from weft.compose.spread import attention_of
from weft.compose.stage import is_copy, is_shared
from weft.graph.backward import differentiate
from weft.graph.program import Program, Value, join
from weft.graph.record import Recorder
from weft.model import lm
from weft.model.families import LAYERS, Kind
from weft.model.params import Parameter
from weft.parallel import sync
from weft.parallel.zero import Bucket
from weft.schedule.encode import weigh_after

# Letters of each parameter's shape, by the last word of its name.
DIMS: Mapping[str, str] = MappingProxyType(
    {
        "embed": "V D",
        "norm": "D",
        "norm_bias": "D",
        "head_bias": "V",
        "norm1_bias": "D",
        "norm2_bias": "D",
        "head": "V D",
        "norm1": "D",
        "norm2": "D",
        "qkv": "Q D",
        "qkv_bias": "Q",
        "sinks": "H",
        "out": "D A",
        "out_bias": "D",
        "q_norm": "C",
        "k_norm": "C",
        "wide_q_norm": "A",
        "wide_k_norm": "g",
        "router": "E D",
        "router_offset": "E",
        "up": "L 2F D",
        "down": "L D F",
        "up_bias": "L 2F",
        "down_bias": "L D",
        "shared_up": "2w D",
        "shared_down": "D w",
        "shared_gate": "1 D",
        "dense_up": "2W D",
        "dense_down": "D W",
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A forward that keeps what its backward reads, and that backward (none where the forward holds
    it).
    """

    forward: Program
    backward: Program | None


def short(parameter: Parameter) -> str:
    """The name of a parameter inside its layer: `layers.3.qkv` is `qkv`."""
    return parameter.name.rpartition(".")[2]


def embedding(plan: Plan) -> Segment:
    """Token ids to the first hidden state, and the rotary table."""
    o = Recorder("embedding.forward")
    w = SimpleNamespace(embed=o.input("w.embed", DIMS["embed"]))
    lowering = Lowering(o, plan, Context())
    tokens = o.input("tokens", "T", "i64")
    positions = o.input("positions", lowering.spread.projected.tokens, "i64")
    outputs = lm.embedding(lowering, tokens, positions, w)
    derived = differentiate(o.finish(*outputs))
    return Segment(forward=derived.forward, backward=derived.backward)


def positions(plan: Plan) -> Program:
    """The rotary table alone: where hidden states are received, not embedded."""
    o = Recorder("positions")
    return o.finish(*Lowering(o, plan, Context()).rope_table(o.input("positions", "T", "i64")))


def layer(plan: Plan, kind: Kind, weights: Sequence[str], *, evaluate: bool = False) -> Segment:
    """One layer of a kind; `weights` are the short names of its parameters."""
    o = Recorder(f"{kind}.forward")
    here = attention_of(plan).projected
    dims = {**DIMS, **here.weights}
    w = SimpleNamespace(**{name: o.input(f"w.{name}", dims[name]) for name in weights})
    x = o.input("x", "T D")
    routed = kind is not Kind.DENSE
    drops = routed and plan.arithmetic.balance.capacity > 0
    bounded = routed and plan.bounded_rows > 0
    context = Context(
        cos=o.input("cos", f"{here.tokens} c", "acc"),
        sin=o.input("sin", f"{here.tokens} c", "acc"),
        segments=o.input("segments", "", "host"),
        losses=o.input("s.losses", "2", "acc") if routed else None,
        tally=o.input("s.tally", "E", "acc") if routed else None,
        dropped=o.input("s.dropped", "1", "acc") if drops else None,
        overflow=o.input("s.overflow", "1", "acc") if bounded else None,
        past=o.input("s.past", "E", "acc") if routed else None,
        bias=o.input("s.bias", "E", "acc") if routed else None,
        forced=o.input("forced", "T k", "i64") if routed and plan.replay else None,
    )
    lowering = Lowering(o, plan, context)
    y = LAYERS[kind](lowering, x, w)
    extra = (lowering.routing.experts,) if lowering.routing is not None else ()
    effects = (lowering.losses, lowering.tally) if routed else ()
    effects += (lowering.dropped,) if drops else ()
    effects += (lowering.overflow,) if bounded else ()
    program = o.finish(y, *effects, *extra)
    encodes = routed and plan.crossings.encodes
    program = weigh_after(program) if encodes else program
    if evaluate:
        program = wire.forward(plan, program) if encodes else program
        return Segment(forward=program, backward=None)
    derived = differentiate(program)
    if not encodes:
        return Segment(forward=derived.forward, backward=derived.backward)
    return Segment(
        forward=wire.forward(plan, derived.forward), backward=wire.backward(plan, derived.backward)
    )


def head(plan: Plan, weight: str, *, evaluate: bool = False) -> Segment:
    """The final norm and the loss; in training its backward follows, in the same program."""
    o = Recorder("head.evaluate" if evaluate else "head.forward")
    text = lm.HEADS[plan.shape.family.layer_norm]
    own = {name: o.input(f"w.{name}", DIMS[name]) for name in text.weights}
    w = SimpleNamespace(**own, head=o.input(f"w.{weight}", DIMS["head"]))
    x, targets = o.input("x", "T D"), o.input("targets", "T", "i64")
    context = Context(divisor=o.input("divisor", "", "host"), loss=o.input("s.loss", "1", "acc"))
    program = o.finish(text.loss(Lowering(o, plan, context), x, targets, w))
    if evaluate:
        return Segment(forward=program, backward=None)
    derived = differentiate(program)
    return Segment(forward=join("head", derived.forward, derived.backward), backward=None)


def update(plan: Plan, owned: Sequence[Bucket]) -> Program:
    """The end of a step: gradients summed over replicas, one norm over all, one verdict, one
    update, parameters home.
    """
    o = Recorder("update")
    settings = plan.update
    stats, norm2 = o.input("s.stats", "I", "acc"), o.input("s.norm2", "1", "acc")
    held = plan.sync.zero > 1
    shards = {
        b.name: o.input(f"s.shard.{b.name}" if held else f"shard.{b.name}", str(b.shard), "acc")
        for b in owned
    }
    joins = [shards[b.name] for b in owned if arrives_in_flight(plan, b)]
    for bucket in (b for b in owned if is_shared(plan, b.name)):
        (shards[bucket.name],) = o.call(
            "sum_ends", shards[bucket.name], axis="ends", label="tied", renames=_lengths(bucket)
        )
    for bucket in (b for b in owned if not is_copy(plan, b.name)):
        (norm2,) = o.call("square_sum", shards[bucket.name], norm2, renames=_lengths(bucket))
    (stats,) = o.call("sum_statistics", stats, norm2, axis="world", label="statistics")
    (verdict,) = o.call("decide", stats, clip_norm=settings.clip_norm)
    state = [o.input(f"s.{name}", "l E", "acc") for name in ("biases", "pasts")]
    balance = o.call(
        "balance_router", stats, verdict, *state,
        rate=plan.arithmetic.balance.bias_rate, first=LOADS,
    )  # fmt: skip
    rates = o.input("rates", "", "host")
    gathered: list[Value] = []
    for bucket in owned:
        state = [
            o.input(f"s.{kind}.{bucket.name}", str(bucket.shard), "acc")
            for kind in ("master", "mean", "square")
        ]
        own = o.input(f"s.own.{bucket.name}", str(bucket.shard))
        decay = o.input(f"s.decay.{bucket.name}", "", "host")
        (updated,) = o.call(
            "adamw", shards[bucket.name], verdict, rates, *state, own, decay,
            beta1=settings.beta1, beta2=settings.beta2, eps=settings.eps, renames=_lengths(bucket),
        )  # fmt: skip
        flat = o.input(f"w.{bucket.name}", str(bucket.numel))
        place = plan.layout.replica(bucket.axis, plan.rank)
        gathered.append(sync.gather(o, updated, flat, bucket.legs, place=place))
    return o.finish(stats, verdict, *balance, *gathered, joins=tuple(joins))


def gather(plan: Plan, owned: Sequence[Bucket]) -> Program:
    """Every parameter from the master weights of its owners, in order of use."""
    o = Recorder("gather")
    gathered: list[Value] = []
    for bucket in owned:
        master = o.input(f"s.master.{bucket.name}", str(bucket.shard), "acc")
        own = o.input(f"s.own.{bucket.name}", str(bucket.shard))
        (updated,) = o.call("round_params", master, own, renames=_lengths(bucket))
        flat = o.input(f"w.{bucket.name}", str(bucket.numel))
        place = plan.layout.replica(bucket.axis, plan.rank)
        gathered.append(sync.gather(o, updated, flat, bucket.legs, place=place))
    return o.finish(*gathered)


def _lengths(bucket: Bucket) -> dict[str, str]:
    """A bucket's own elements in place of the letters that stand for any bucket's."""
    return {"Z": str(bucket.numel), "z": str(bucket.shard)}

"""The vocabulary: every operator of weft, one entry each, and nothing else.

An entry states the signature in dims, the lane, what the backward needs, the work (FLOPs, wire bytes), the
tolerance class and the section of the paper. Bodies bind to entries by name (`ops.registry`), a test checks the
bijection, so adding an operator starts here.

A signature reads `inputs -> outputs`; a port reads `name[mark][@kind]: dims`, where the mark `*` is a parameter
(its gradient accumulates into `main_grad`) and `~` has no gradient, and the kind is the dtype:
`act` (default, the compute dtype), `acc` (promote(dtype, float32)), `bf16` (what a compressed wire carries), `i32`,
`i64`, `host` (a Python value).

The backward is derived (`graph.backward`) from three fields:

    dgrad  saved ports its input-gradient body reads:   op.dgrad(*output_grads, *saved) -> input grads
    wgrad  saved ports its weight-gradient body reads:  op.wgrad(*accs, *output_grads, *saved) -> accs
    adjoint  the operator that *is* the input gradient (collectives; `all_gather` and `reduce_scatter`)

A weight gradient adds. Where its operator also `writes`, `op.wgrad_first` takes the same operands, writes the gradient
over the accumulator and reads nothing of it (`compose.first` says who does).

Two shortcuts keep gradients from being copied: `same_grad` pairs an input with another whose gradient is the same
value, and `passes_grad` pairs an input with the output whose gradient it simply is.

A task may rename dims (`project` reads `A` columns in attention, `W` in a feed-forward); work is computed after that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from weft.errors import ProgramError
from weft.graph.dims import Sizes

FIRST = "wgrad_first"  # the phase of a weight gradient that writes where the others add


class Lane(StrEnum):
    """Where a task runs: compute, a communication lane beside it, or the host (a device-to-host copy)."""

    COMPUTE = "compute"
    COMM = "comm"
    HOST = "host"


class Tolerance(StrEnum):
    """How a body may differ from the reference; `testing.tolerance` turns a class into a number."""

    EXACT = "exact"  # a copy, a permutation, integers
    ELEMENTWISE = "elementwise"  # a few roundings an element
    REDUCTION = "reduction"  # one sum along a dim
    MATMUL = "matmul"  # a long accumulated product
    ATTENTION = "attention"


@dataclass(frozen=True, slots=True)
class Port:
    """One operand: its name, dims, kind of dtype, and whether it is a parameter or carries a gradient."""

    name: str
    dims: str
    kind: str = "act"
    weight: bool = False
    differentiable: bool = True


Work = Callable[[Sizes], int]


def _no_work(_sizes: Sizes) -> int:
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """One operator of the vocabulary."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    lane: Lane = Lane.COMPUTE
    dgrad: tuple[str, ...] | None = None
    wgrad: tuple[str, ...] | None = None
    adjoint: str | None = None
    same_grad: tuple[tuple[str, str], ...] = ()
    passes_grad: tuple[tuple[str, str], ...] = ()
    is_loss: bool = False
    fused_backward: bool = False
    writes: bool = False
    flops: Work = _no_work
    wire: str | None = None
    tolerance: Tolerance = Tolerance.ELEMENTWISE
    paper: str = ""

    @property
    def weights(self) -> tuple[Port, ...]:
        return tuple(p for p in self.inputs if p.weight)

    @property
    def differentiable_inputs(self) -> tuple[Port, ...]:
        return tuple(p for p in self.inputs if p.differentiable and not p.weight)

    @property
    def differentiable_outputs(self) -> tuple[Port, ...]:
        return tuple(p for p in self.outputs if p.differentiable)


def _port(text: str) -> Port:
    head, _, dims = text.partition(":")
    name, _, kind = head.strip().partition("@")
    mark = name[-1] if name[-1] in "*~" else ""
    return Port(
        name=name.rstrip("*~"),
        dims=dims.strip(),
        kind=kind or "act",
        weight=mark == "*",
        differentiable=mark != "~",
    )


def _ports(text: str) -> tuple[Port, ...]:
    return tuple(_port(p) for p in text.split(",") if p.strip())


def _op(
    name: str,
    signature: str,
    *,
    dgrad: str | None = None,
    wgrad: str | None = None,
    same_grad: tuple[tuple[str, str], ...] = (),
    passes_grad: tuple[tuple[str, str], ...] = (),
    is_loss: bool = False,
    fused_backward: bool = False,
    writes: bool = False,
    flops: Work = _no_work,
    lane: Lane = Lane.COMPUTE,
    tolerance: Tolerance = Tolerance.ELEMENTWISE,
    paper: str = "",
) -> Op:
    inputs, _, outputs = signature.partition("->")
    return Op(
        name=name,
        inputs=_ports(inputs),
        outputs=_ports(outputs),
        lane=lane,
        dgrad=None if dgrad is None else tuple(dgrad.split()),
        wgrad=None if wgrad is None else tuple(wgrad.split()),
        same_grad=same_grad,
        passes_grad=passes_grad,
        is_loss=is_loss,
        fused_backward=fused_backward,
        writes=writes,
        flops=flops,
        tolerance=tolerance,
        paper=paper,
    )


def _comm(
    name: str,
    signature: str,
    *,
    wire: str,
    adjoint: str | None = None,
    tolerance: Tolerance = Tolerance.EXACT,
    paper: str = "",
) -> Op:
    entry = _op(name, signature, lane=Lane.COMM, tolerance=tolerance, paper=paper)
    return replace(entry, wire=wire, adjoint=adjoint)


# fmt: off
_TABLE = (
    # ---- embedding and positions ---------------------------------------------------------------------------
    _op("embed", "tokens~@i64:T, w*:V D -> x:T D", wgrad="tokens", tolerance=Tolerance.EXACT, paper="6.2"),
    _op("rope_table", "positions~@i64:T -> cos~@acc:T c, sin~@acc:T c", paper="2.2"),
    _op("yarn_rope_table", "positions~@i64:T -> cos~@acc:T c, sin~@acc:T c", tolerance=Tolerance.REDUCTION),
    # ---- attention half ------------------------------------------------------------------------------------
    _op(
        "rms_norm", "x:T D, w*:D -> y:T D, rstd~@acc:T",
        dgrad="x w rstd", wgrad="x rstd",
        flops=lambda n: 4 * n.T * n.D, tolerance=Tolerance.REDUCTION, paper="2.2",
    ),
    _op(
        "add_rms_norm", "x:T D, r:T D, w*:D -> s:T D, y:T D, rstd~@acc:T",
        dgrad="s w rstd", wgrad="s rstd", same_grad=(("r", "x"),),
        flops=lambda n: 5 * n.T * n.D, tolerance=Tolerance.REDUCTION, paper="2.2",
    ),
    _op(
        "layer_norm", "x:T D, w*:D, b*:D -> y:T D, mean~@acc:T, rstd~@acc:T",
        dgrad="x w mean rstd", wgrad="x mean rstd",
        flops=lambda n: 7 * n.T * n.D, tolerance=Tolerance.REDUCTION,
    ),
    _op(
        "add_layer_norm", "x:T D, r:T D, w*:D, b*:D -> s:T D, y:T D, mean~@acc:T, rstd~@acc:T",
        dgrad="s w mean rstd", wgrad="s mean rstd", same_grad=(("r", "x"),),
        flops=lambda n: 8 * n.T * n.D, tolerance=Tolerance.REDUCTION,
    ),
    _op(
        "qkv_project", "h:T D, w*:Q D -> qkv:T Q", dgrad="w", wgrad="h",
        flops=lambda n: 2 * n.T * n.D * n.Q, tolerance=Tolerance.MATMUL, paper="2.2",
    ),
    _op(
        "qkv_project_shared", "h:N D, w*:M D, kv*:2 G C D -> qkv:N P", dgrad="w kv", wgrad="h",
        flops=lambda n: 2 * n.N * n.D * n.P, tolerance=Tolerance.MATMUL, paper="1.2",
    ),
    _op(
        "rotate", "qkv:T Q, cos~@acc:T c, sin~@acc:T c -> q:T H C, k:T G C, v:T G C",
        dgrad="cos sin", flops=lambda n: 3 * n.T * (n.H + n.G) * n.C, paper="2.2",
    ),
    _op(
        "norm_rotate",
        "qkv:T Q, q_norm*:C, k_norm*:C, cos~@acc:T c, sin~@acc:T c -> q:T H C, k:T G C, v:T G C, rstd~@acc:T h",
        dgrad="qkv q_norm k_norm rstd cos sin", wgrad="qkv rstd cos sin",
        flops=lambda n: 7 * n.T * (n.H + n.G) * n.C, tolerance=Tolerance.REDUCTION, paper="2.2",
    ),
    _op(
        "wide_norm_rotate",
        "qkv:T Q, q_norm*:A, k_norm*:g, cos~@acc:T c, sin~@acc:T c -> q:T H C, k:T G C, v:T G C, rstd~@acc:T 2",
        dgrad="qkv q_norm k_norm rstd cos sin", wgrad="qkv rstd cos sin",
        flops=lambda n: 7 * n.T * (n.H + n.G) * n.C, tolerance=Tolerance.REDUCTION,
    ),
    _op("pack_heads", "q:T H C, k:T G C, v:T G C -> p:N P", dgrad="", tolerance=Tolerance.EXACT, paper="1.2"),
    _op("split_heads", "p:N P -> q:N J C, k:N K C, v:N K C", dgrad="", tolerance=Tolerance.EXACT, paper="1.2"),
    _op(
        "attention", "q:N J C, k:N K C, v:N K C, segments~@host: -> a:N J C, lse~@acc:J N",
        dgrad="q k v a lse segments",
        flops=lambda n: 2 * n.N * n.S * n.J * n.C, tolerance=Tolerance.ATTENTION, paper="2.2",
    ),
    _op(
        "sink_attention", "q:N J C, k:N K C, v:N K C, sinks*:H, segments~@host: -> a:N J C, lse~@acc:J N",
        dgrad="q k v a lse segments", wgrad="sinks a lse",
        flops=lambda n: 2 * n.N * n.S * n.J * n.C, tolerance=Tolerance.ATTENTION,
    ),
    _op("join_kv", "k:T G C, v:T G C -> p:T 2G C", dgrad="", tolerance=Tolerance.EXACT, paper="1.2"),
    _op("order_kv", "p:N 2G C -> k:N G C, v:N G C", dgrad="", tolerance=Tolerance.EXACT, paper="1.2"),
    _op(
        "attention_part", "q:T H C, k:N G C, v:N G C, segments~@host: -> a:T H C, lse~@acc:H T",
        dgrad="q k v a lse segments",
        flops=lambda n: 2 * n.T * n.S * n.H * n.C, tolerance=Tolerance.ATTENTION, paper="1.2",
    ),
    _op("join_heads", "p:N J C -> a:T A", dgrad="", tolerance=Tolerance.EXACT, paper="1.2"),
    _op(
        "project", "x:T A, w*:D A -> y:T D", dgrad="w", wgrad="x",
        flops=lambda n: 2 * n.T * n.A * n.D, tolerance=Tolerance.MATMUL, paper="2.2",
    ),
    _op(
        "add", "x:T D, y:T D -> z:T D", passes_grad=(("x", "z"), ("y", "z")),
        flops=lambda n: n.T * n.D,
    ),
    _op(
        "add_bias", "x:T D, b*:D -> y:T D", passes_grad=(("x", "y"),), wgrad="",
        flops=lambda n: n.T * n.D, tolerance=Tolerance.REDUCTION,
    ),
    # ---- router --------------------------------------------------------------------------------------------
    _op(
        "router_logits", "h:T D, w*:E D -> logits@acc:T E", dgrad="w", wgrad="h",
        flops=lambda n: 2 * n.T * n.D * n.E, tolerance=Tolerance.MATMUL, paper="5",
    ),
    _op(
        "biased_router_logits", "h:T D, w*:E D, b*:E -> logits@acc:T E", dgrad="w", wgrad="h",
        flops=lambda n: 2 * n.T * n.D * n.E, tolerance=Tolerance.MATMUL,
    ),
    _op(
        "select_experts", "logits@acc:T E, bias~@acc:E -> weights@acc:T k, experts~@i64:T k",
        dgrad="logits experts", flops=lambda n: 5 * n.T * n.E, paper="5",
    ),
    _op(
        "select_grouped_experts", "logits@acc:T E, bias~@acc:E -> weights@acc:T k, experts~@i64:T k",
        dgrad="logits experts", flops=lambda n: 6 * n.T * n.E,
    ),
    _op(
        "replay_experts",
        "logits@acc:T E, bias~@acc:E, forced~@i64:T k -> weights@acc:T k, experts~@i64:T k",
        dgrad="logits experts", flops=lambda n: 5 * n.T * n.E, paper="5",
    ),
    _op(
        "select_sparsemixer", "logits@acc:T E, bias~@acc:E -> weights@acc:T k, experts~@i64:T k",
        dgrad="logits experts", flops=lambda n: 10 * n.T * n.E,
    ),
    _op(
        "replay_sparsemixer",
        "logits@acc:T E, bias~@acc:E, forced~@i64:T k -> weights@acc:T k, experts~@i64:T k",
        dgrad="logits experts", flops=lambda n: 10 * n.T * n.E,
    ),
    # ---- balance -------------------------------------------------------------------------------------------
    _op("count_load", "experts~@i64:T k -> load~@i64:B E", tolerance=Tolerance.EXACT, paper="5"),
    _op(
        "router_losses", "logits@acc:T E, load~@i64:B E, past~@acc:E, losses~@acc:2 -> total~@acc:2",
        dgrad="logits load past", is_loss=True, flops=lambda n: 6 * n.T * n.E, tolerance=Tolerance.REDUCTION, paper="5",
    ),
    _op("add_load", "load~@i64:B E, tally~@acc:E -> total~@acc:E", tolerance=Tolerance.EXACT, paper="5"),
    _op(
        "score_choices", "logits~@acc:T E, experts~@i64:T k -> scores~@acc:T k",
        flops=lambda n: 4 * n.T * n.E, paper="5",
    ),
    _op(
        "keep_choices", "scores~@acc:N k, experts~@i64:N k -> kept~@i64:T k, dropped~@i64:1",
        tolerance=Tolerance.EXACT, paper="5",
    ),
    _op("add_dropped", "dropped~@i64:1, tally~@acc:1 -> total~@acc:1", tolerance=Tolerance.EXACT, paper="5"),
    _op(
        "balance_router",
        "stats~@acc:I, verdict~@acc:2, biases~@acc:l E, past~@acc:l E -> moved~@acc:l E, seen~@acc:l E",
        flops=lambda n: 3 * n.l * n.E, paper="5",
    ),
    # ---- row maps and row movement -------------------------------------------------------------------------
    _op(
        "plan_rows", "experts~@i64:T k -> order~@i64:O, slot_row~@i64:T k, counts~@i64:E, ends~@i32:E",
        tolerance=Tolerance.EXACT, paper="5",
    ),
    _op(
        "plan_received", "counts~@i64:Y L, splits~@host: -> order~@i64:R, inverse~@i64:R, ends~@i32:L",
        tolerance=Tolerance.EXACT, paper="3.3",
    ),
    _op("count_visits", "experts~@i64:T k -> counts~@i64:2Y", tolerance=Tolerance.EXACT, paper="1.3"),
    _op(
        "plan_visits", "experts~@i64:T k, splits~@host: -> order~@i64:o, slot_row~@i64:T Y, choices~@i64:o k",
        tolerance=Tolerance.EXACT, paper="1.3",
    ),
    _op(
        "permute_gates", "gates@acc:T k, order~@i64:o, slot_row~@i64:T Y -> out@acc:o k",
        dgrad="slot_row", tolerance=Tolerance.EXACT, paper="1.3",
    ),
    _op("count_local", "experts~@i64:U k -> counts~@i64:L", tolerance=Tolerance.EXACT, paper="1.3"),
    _op(
        "plan_local", "experts~@i64:U k, rows~@host: -> order~@i64:R, slot_row~@i64:U k, ends~@i32:L",
        tolerance=Tolerance.EXACT, paper="1.3",
    ),
    _op(
        "plan_within", "experts~@i64:U k -> order~@i64:R, slot_row~@i64:U k, ends~@i32:L, overflow~@i64:1",
        tolerance=Tolerance.EXACT, paper="1.3",
    ),
    _op("permute", "h:T D, order~@i64:R, slot_row~@i64:T k -> rows:R D", dgrad="slot_row", tolerance=Tolerance.EXACT, paper="5"),
    _op(
        "permute_weights", "weights@acc:T k, order~@i64:R, slot_row~@i64:T k -> row_weights@acc:R",
        dgrad="slot_row", tolerance=Tolerance.EXACT, paper="5",
    ),
    _op("reorder", "rows:R D, order~@i64:R, inverse~@i64:R -> out:R D", dgrad="inverse order", tolerance=Tolerance.EXACT, paper="5"),
    _op("reorder_weights", "scales@acc:R, order~@i64:R, inverse~@i64:R -> out@acc:R", dgrad="inverse order", tolerance=Tolerance.EXACT, paper="5"),
    _op(
        "gather_sum", "rows:R D, slot_row~@i64:T k, order~@i64:R -> z:T D", dgrad="order",
        flops=lambda n: n.R * n.D, tolerance=Tolerance.REDUCTION, paper="1.3",
    ),
    # ---- feed-forward --------------------------------------------------------------------------------------
    _op(
        "expert_up", "rows:R D, w*:L 2F D, ends~@i32:L -> u:R 2F", dgrad="w ends", wgrad="rows ends", writes=True,
        flops=lambda n: 4 * n.R * n.D * n.F, tolerance=Tolerance.MATMUL, paper="2.2",
    ),
    _op(
        "swiglu", "u:R 2F, row_weights@acc:R, ends~@i32:L -> s:R F", dgrad="u row_weights ends",
        flops=lambda n: 6 * n.R * n.F, paper="2.3",
    ),
    _op(
        "expert_down", "s:R F, w*:L D F, ends~@i32:L -> d:R D", dgrad="w ends", wgrad="s ends", writes=True,
        flops=lambda n: 2 * n.R * n.D * n.F, tolerance=Tolerance.MATMUL, paper="2.2",
    ),
    _op(
        "weighted_down", "s:R F, w*:L D F, ends~@i32:L, row_weights@acc:R -> d:R D",
        dgrad="w ends s row_weights", wgrad="s ends row_weights", writes=True,
        flops=lambda n: 2 * n.R * n.D * n.F, tolerance=Tolerance.MATMUL, paper="4.3",
    ),
    _op(
        "add_expert_bias", "x:R 2F, b*:L 2F, ends~@i32:L -> y:R 2F", passes_grad=(("x", "y"),), wgrad="ends",
        flops=lambda n: 2 * n.R * n.F, tolerance=Tolerance.REDUCTION,
    ),
    _op(
        "clamped_swiglu", "u:R 2F, row_weights@acc:R -> s:R F", dgrad="u row_weights",
        flops=lambda n: 9 * n.R * n.F,
    ),
    _op("clamped_glu", "u:R 2F -> s:R F", dgrad="u", flops=lambda n: 8 * n.R * n.F, paper="4.3"),
    _op(
        "add_weighted_bias", "x:R D, row_weights@acc:R, b*:L D, ends~@i32:L -> y:R D",
        passes_grad=(("x", "y"),), dgrad="b ends", wgrad="row_weights ends",
        flops=lambda n: 2 * n.R * n.D, tolerance=Tolerance.REDUCTION,
    ),
    _op("dense_swiglu", "u:T 2W -> s:T W", dgrad="u", flops=lambda n: 5 * n.T * n.W, paper="6.1"),
    _op(
        "shared_gate", "f:T D, h:T D, w*:1 D -> z:T D, gate~@acc:T", dgrad="f w gate", wgrad="f h gate",
        flops=lambda n: 3 * n.T * n.D, tolerance=Tolerance.REDUCTION,
    ),
    # ---- the head and its loss -----------------------------------------------------------------------------
    _op(
        "cross_entropy", "h:T D, w*:V D, targets~@i64:T, divisor~@host:, loss~@acc:1 -> total~@acc:1",
        is_loss=True, fused_backward=True,
        flops=lambda n: 2 * n.T * n.D * n.V, tolerance=Tolerance.MATMUL, paper="6.2",
    ),
    _op(
        "biased_cross_entropy",
        "h:T D, w*:V D, b*:V, targets~@i64:T, divisor~@host:, loss~@acc:1 -> total~@acc:1",
        is_loss=True, fused_backward=True,
        flops=lambda n: 2 * n.T * n.D * n.V, tolerance=Tolerance.MATMUL,
    ),
    # ---- collectives ---------------------------------------------------------------------------------------
    _comm("all_to_all", "x:N P -> y:N P", adjoint="all_to_all", wire="even", paper="1.2"),
    _comm("all_to_all_counts", "counts~@i64:E -> received~@i64:Y L", wire="even", paper="1.3"),
    _comm("all_to_all_rows", "rows:O D, splits~@host: -> out:R D", adjoint="all_to_all_rows", wire="rows", paper="1.3"),
    _comm("all_to_all_weights", "scales@acc:O, splits~@host: -> out@acc:R", adjoint="all_to_all_weights", wire="rows", paper="1.3"),
    _comm("all_to_all_choices", "choices~@i64:o k, splits~@host: -> out~@i64:r k", wire="rows", paper="1.3"),
    _comm("all_gather", "x:T D -> y:U D", adjoint="reduce_scatter", wire="gather", paper="1.3"),
    _comm(
        "reduce_scatter", "x:U D -> y:T D", adjoint="all_gather", wire="scatter", paper="1.3", tolerance=Tolerance.REDUCTION,
    ),
    _comm("all_gather_weights", "weights@acc:T k -> all@acc:U k", adjoint="reduce_scatter_weights", wire="gather", paper="1.3"),
    _comm("reduce_scatter_weights", "all@acc:U k -> weights@acc:T k", adjoint="all_gather_weights", wire="scatter", paper="1.3", tolerance=Tolerance.REDUCTION),
    _comm("all_gather_experts", "experts~@i64:T k -> all~@i64:U k", wire="gather", paper="1.3"),
    _comm("sum_load", "load~@i64:B E -> total~@i64:B E", wire="reduce", paper="5"),
    # ---- messages between pipeline stages ------------------------------------------------------------------
    _comm("send", "x~:T D -> sent~:T D", wire="send", paper="1.5"),
    _comm("receive", "like~:T D -> x~:T D", wire="receive", paper="1.5"),
    # ---- eight bits on the wire ----------------------------------------------------------------------------
    _op("encode_rows", "x~:R D -> packet~@u8:R p", flops=lambda n: 2 * n.R * n.D, tolerance=Tolerance.EXACT, paper="4.2"),
    _op("decode_rows", "packet~@u8:R p -> x~:R D", flops=lambda n: n.R * n.D, paper="4.2"),
    _op("decode_row_sums", "packet~@u8:U p -> z~:T D", flops=lambda n: 2 * n.U * n.D, tolerance=Tolerance.REDUCTION, paper="4.2"),
    _op("encode_channels", "x~:O D, splits~@host: -> packet~@u8:b D", flops=lambda n: 2 * n.O * n.D, tolerance=Tolerance.EXACT, paper="4.2"),
    _op("decode_channels", "packet~@u8:a D, splits~@host: -> x~:R D", flops=lambda n: n.R * n.D, paper="4.2"),
    _op("encode_blocks", "x~:T D -> packet~@u8:t D", flops=lambda n: 2 * n.T * n.D, tolerance=Tolerance.EXACT, paper="4.2"),
    _op("decode_blocks", "packet~@u8:u D -> x~:U D", flops=lambda n: n.U * n.D, paper="4.2"),
    _op("decode_block_sums", "packet~@u8:u D -> z~:T D", flops=lambda n: 2 * n.U * n.D, tolerance=Tolerance.REDUCTION, paper="4.2"),
    _comm("all_to_all_packets", "packet~@u8:O p, splits~@host: -> out~@u8:R p", wire="rows", paper="4.2"),
    _comm("all_to_all_groups", "packet~@u8:b D, splits~@host: -> out~@u8:a D", wire="groups", paper="4.2"),
    _comm("all_to_all_blocks", "packet~@u8:U p -> out~@u8:U p", wire="even", paper="4.2"),
    _comm("all_gather_packets", "packet~@u8:T p -> out~@u8:U p", wire="gather", paper="4.2"),
    # ---- chunks of an operator and its collective; the last port of a join, and every one of a synchronisation of all,
    # stands for one a chunk
    _op("slice_chunk", "x~:T D -> part~:T D", tolerance=Tolerance.EXACT, paper="3.1"),
    _op("join_chunks", "part~:T D -> whole~:T D", tolerance=Tolerance.EXACT, paper="3.1"),
    _op("take_blocks", "x~:N P -> part~:N P", tolerance=Tolerance.EXACT, paper="3.1"),
    _op("join_blocks", "part~:N P -> whole~:N P", tolerance=Tolerance.EXACT, paper="3.1"),
    _op("merge_rows", "places~@i64:R, part~:R D -> whole~:R D", tolerance=Tolerance.EXACT, paper="3.3"),
    _op("place_gathered", "order~@i64:R -> places~@i64:R", tolerance=Tolerance.EXACT, paper="3.3"),
    _op("place_received", "splits~@host:, received~@i64:Y L -> places~@i64:R", tolerance=Tolerance.EXACT, paper="3.3"),
    # ---- named host synchronisations -----------------------------------------------------------------------
    _op("splits_to_host", "sent~@i64:E, received~@i64:Y L -> splits~@host:", lane=Lane.HOST, tolerance=Tolerance.EXACT, paper="5"),
    _op("visits_to_host", "sent~@i64:2Y, received~@i64:Y 2 -> splits~@host:, rows~@host:", lane=Lane.HOST, tolerance=Tolerance.EXACT, paper="5"),
    _op("rows_to_host", "counts~@i64:L -> rows~@host:", lane=Lane.HOST, tolerance=Tolerance.EXACT, paper="5"),
    _op("all_splits_to_host", "sent~@i64:E, received~@i64:Y L -> splits~@host:", lane=Lane.HOST, tolerance=Tolerance.EXACT, paper="3.3"),
    _op("all_rows_to_host", "counts~@i64:L -> rows~@host:", lane=Lane.HOST, tolerance=Tolerance.EXACT, paper="3.3"),
    # ---- gradient synchronisation and the optimizer --------------------------------------------------------
    _comm("reduce_scatter_grad", "grad~@acc:Z -> shard~@acc:z", wire="scatter", paper="1.4", tolerance=Tolerance.REDUCTION),
    _op("encode_grad", "grad~@acc:Z -> sent~@bf16:Z", flops=lambda n: n.Z, paper="4.1"),
    _comm("all_to_all_grad", "sent~@bf16:Z, grad~@acc:Z -> received~@bf16:Z", wire="even", paper="4.1"),
    _op(
        "decode_grad", "received~@bf16:Z, grad~@acc:Z -> shard~@acc:z",
        flops=lambda n: n.Z, tolerance=Tolerance.REDUCTION, paper="4.1",
    ),
    _op("take_block", "sent~@bf16:Z -> partial~@bf16:z", tolerance=Tolerance.EXACT, paper="4.1"),
    _comm("pass_on", "partial~@bf16:z -> arrived~@bf16:z", wire="shift", paper="4.1"),
    _op("add_block", "arrived~@bf16:z, sent~@bf16:Z -> partial~@bf16:z", flops=lambda n: n.z, paper="4.1"),
    _op("widen_grad", "partial~@bf16:z -> shard~@acc:z", tolerance=Tolerance.EXACT, paper="4.1"),
    _op("add_shard", "shard~@acc:z, total~@acc:z -> summed~@acc:z", flops=lambda n: n.z, paper="1.4"),
    _op("clear_grad", "grad~@acc:Z, read~@acc:z -> cleared~@acc:Z", tolerance=Tolerance.EXACT, paper="1.4"),
    _op("square_sum", "shard~@acc:z, norm2~@acc:1 -> total~@acc:1", flops=lambda n: 2 * n.z, tolerance=Tolerance.REDUCTION),
    _comm("sum_ends", "shard~@acc:z -> total~@acc:z", wire="reduce", paper="1.5", tolerance=Tolerance.REDUCTION),
    _comm("sum_statistics", "stats~@acc:I, norm2~@acc:1 -> total~@acc:I", wire="reduce", tolerance=Tolerance.REDUCTION),
    _op("decide", "stats~@acc:I -> verdict~@acc:2"),
    _op(
        "adamw",
        "shard~@acc:z, verdict~@acc:2, rates~@host:, master~@acc:z, mean~@acc:z, square~@acc:z, own~:z, decay~@host: "
        "-> updated~:z",
        flops=lambda n: 12 * n.z,
    ),
    _op("round_params", "master~@acc:z, own~:z -> updated~:z", paper="1.4"),
    _comm("gather_block", "updated~:z, bucket~:Z -> block~:y", wire="gather", paper="1.4"),
    _comm("gather_params", "updated~:z, bucket~:Z -> gathered~:Z", wire="gather", paper="1.4"),
)
# fmt: on

OPS: Mapping[str, Op] = MappingProxyType({op.name: op for op in _TABLE})


def lookup(name: str) -> Op:
    """The vocabulary's entry of that name.

    Raises:
        ProgramError: no such operator.
    """
    try:
        return OPS[name]
    except KeyError:
        raise ProgramError(f"unknown operator {name!r}; the vocabulary is graph/opset.py") from None


def body_names() -> tuple[str, ...]:
    """Every body that an orchestra must supply: forwards, `.dgrad`, `.wgrad` and `.wgrad_first`, `.fused` for losses with
    one pass.
    """
    names: list[str] = []
    for op in _TABLE:
        names.append(op.name)
        if op.dgrad is not None:
            names.append(f"{op.name}.dgrad")
        if op.wgrad is not None:
            names.append(f"{op.name}.wgrad")
        if op.writes:
            names.append(f"{op.name}.{FIRST}")
        if op.fused_backward:
            names.append(f"{op.name}.fused")
    return tuple(names)

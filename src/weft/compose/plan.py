"""What a step is composed from: the model's shape and attributes, the layout, and the unit of work.

`Plan` is the one argument of the room: plain numbers, no configuration library, equal on every rank
but for `rank`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil, comb, gcd

from weft.errors import LayoutError
from weft.graph.dims import Sizes
from weft.model.families import Shape
from weft.model.params import WHOLE, Cut
from weft.parallel.layout import (
    Attention,
    Dispatch,
    FeedForward,
    HeadSplit,
    Layout,
    heads_of,
)
from weft.parallel.share import Numbering, Share, numbering_of, share_of
from weft.parallel.sync import Sync
from weft.schedule.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class Yarn:
    """Rotary frequencies stretched for sequences longer than those of the first training."""

    factor: float
    original: int
    beta_fast: float
    beta_slow: float
    truncate: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossings:
    """How activations and their gradients travel between a token and its experts."""

    dispatch: str = "none"
    combine: str = "none"
    dispatch_grad: str = "none"
    combine_grad: str = "none"
    scales: str = "token"

    @property
    def encodes(self) -> bool:
        """Whether anything travels in eight bits."""
        return "fp8" in (self.dispatch, self.combine, self.dispatch_grad, self.combine_grad)


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """How the load of experts is kept even, beside the balance loss of single experts.

    Coefficients of the losses of groups of experts, of sequences and of past steps; what a step
    moves a bias by; and how many times its even share a group of experts takes (0: everything).
    """

    device_groups: int = 1
    device_coef: float = 0.0
    sequence_coef: float = 0.0
    global_coef: float = 0.0
    bias_rate: float = 0.0
    capacity: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """The constants of the model's operators."""

    norm_eps: float
    rope_theta: float
    score: str
    renormalise: bool
    scaling: float
    aux_coef: float
    z_coef: float
    router_jitter: float = 0.0
    swiglu_alpha: float = 1.0
    swiglu_limit: float = 0.0
    yarn: Yarn | None = None
    balance: Balance = Balance()


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """The constants of the optimizer."""

    beta1: float
    beta2: float
    eps: float
    clip_norm: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One training step of one rank, before it is a program."""

    shape: Shape
    arithmetic: Arithmetic
    layout: Layout
    rank: int
    sequence: int
    micro_batch: int
    micro_batches: int
    precision: str
    order: str
    update: Update
    replay: bool = False
    remat: str | tuple[str, ...] = "none"
    memory: int = 0
    crossings: Crossings = Crossings()
    sync: Sync = field(default_factory=Sync)
    across: bool = False
    merge: bool = False
    saved: str = ""
    fused: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    chunks: int = 2
    row_bound: float = 0.0

    @property
    def fuses(self) -> tuple[str, ...]:
        """The fused operators of its programs: none where the pairs of experts are in chunks."""
        return self.fused if {"dispatch", "combine"}.isdisjoint(self.split) else ()

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch over its sequence-parallel group (N)."""
        return self.micro_batch * self.sequence

    @property
    def local_tokens(self) -> int:
        """Tokens of a micro-batch on this rank (T)."""
        return self.tokens // self.layout.sp

    @property
    def first_token(self) -> int:
        """The number of this rank's first token in the micro-batch."""
        return self.layout.sp_rank(self.rank) * self.local_tokens

    @property
    def local_micro_batches(self) -> int:
        """Micro-batches that this rank runs in a step."""
        return self.micro_batches // self.layout.dp

    @property
    def schedule(self) -> Pipeline:
        """The pipeline's degrees and the name of its order."""
        return Pipeline(
            order=self.layout.pipeline,
            stages=self.layout.pp,
            chunks=self.layout.chunks,
            micro_batches=self.local_micro_batches,
        )

    @property
    def local_experts(self) -> int:
        return self.shape.experts // self.layout.ep

    @property
    def first_expert(self) -> int:
        return self.layout.ep_rank(self.rank) * self.local_experts

    @property
    def group_capacity(self) -> int:
        """Choices of a micro-batch that one group of experts takes; 0 where it takes all."""
        balance = self.arithmetic.balance
        even = Fraction(self.tokens * self.shape.top_k, balance.device_groups)
        return ceil(Fraction(str(balance.capacity)) * even)

    @property
    def bounded_rows(self) -> int:
        """Rows that this rank makes room for, whatever comes; 0 where it waits for their number."""
        if self.layout.ep == 1 or not is_all_gather(self.layout):
            return 0
        even = self.local_tokens * self.shape.top_k
        worst = self.local_tokens * self.layout.ep * min(self.shape.top_k, self.local_experts)
        return min(ceil(Fraction(str(self.row_bound)) * even), worst)

    @property
    def share(self) -> Share:
        """The tokens of a micro-batch that this rank holds."""
        return share_of(self.layout, self.rank, sequences=self.micro_batch, sequence=self.sequence)

    @property
    def numbering(self) -> Numbering:
        """To which sequence each token of this rank belongs."""
        return numbering_of(
            self.layout, self.rank, sequences=self.micro_batch, sequence=self.sequence
        )

    @property
    def heads(self) -> HeadSplit:
        """The heads that this rank attends with."""
        return heads_of(self.layout, self.shape.heads, self.shape.kv_heads)

    @property
    def attention_cut(self) -> Cut:
        """This rank's slice of the heads' weights."""
        return self._slice() if self.layout.attention is Attention.TP else WHOLE

    @property
    def ffn_cut(self) -> Cut:
        """This rank's slice of the widths of feed-forwards."""
        return self._slice() if self.layout.ffn is FeedForward.TP else WHOLE

    def _slice(self) -> Cut:
        return Cut(rank=self.layout.sp_rank(self.rank), degree=self.layout.sp)

    @property
    def accumulation(self) -> str:
        """The dtype of sums: promote(precision, float32)."""
        return "float64" if self.precision == "float64" else "float32"


def without_limit(plan: Plan) -> Plan:
    """The plan with groups of experts that take whatever chooses them."""
    balance = replace(plan.arithmetic.balance, capacity=0.0)
    return replace(plan, arithmetic=replace(plan.arithmetic, balance=balance))


def without_bound(plan: Plan) -> Plan:
    """The plan with room for every row, which its ranks wait to know."""
    return replace(plan, row_bound=0.0)


def validate(plan: Plan) -> Plan:
    """The plan, if its layout cuts its work evenly.

    Raises:
        LayoutError: a degree that does not divide what it cuts.
    """
    shape, layout = plan.shape, plan.layout
    heads_of(layout, shape.heads, shape.kv_heads)
    cuts = [
        ("dp", layout.dp, plan.micro_batches, "micro-batches of a step"),
        ("sp", layout.sp, plan.tokens, "tokens of a micro-batch"),
        ("ep", layout.ep, shape.experts, "experts"),
        ("ep", layout.ep, layout.stage, "ranks of a stage"),
    ]
    _refuse_slices(plan)
    if layout.attention is Attention.CP and layout.sp > 1:
        cuts.append(("sp", layout.sp, _halved(plan.sequence), "pairs of tokens of a sequence"))
    if layout.ffn is FeedForward.TP:
        cuts.append(("sp", layout.sp, shape.ffn_hidden, "channels of an expert"))
        cuts.append(("sp", layout.sp, shape.dense_ffn_hidden, "channels of a feed-forward"))
    for axis, degree, count, what in cuts:
        if count % degree:
            raise LayoutError(
                f"parallel.{axis} = {degree} does not divide the {count} {what}; "
                f"try {axis} = {gcd(degree, count)}"
            )
    return plan


def _refuse_slices(plan: Plan) -> None:
    """Refuses what tensor and context parallelism have no slice of."""
    shape, layout, heads = plan.shape, plan.layout, plan.attention_cut.degree
    if heads > 1 and shape.qk_norm and shape.family.wide_qk_norm:
        raise LayoutError(
            f"parallel.sp = {layout.sp}: attention = tp has no slice of a norm over all heads; "
            "try attention = sp"
        )
    if heads > shape.kv_heads and shape.attention_bias:
        raise LayoutError(
            f"parallel.sp = {layout.sp}: attention = tp shares no biased key/value head; "
            f"try sp = {shape.kv_heads}"
        )
    if layout.attention is Attention.CP and layout.sp > 1 and shape.family.sinks:
        raise LayoutError(
            f"parallel.sp = {layout.sp}: attention = cp has no part of an attention with sinks; "
            "try attention = sp"
        )
    if plan.ffn_cut.degree > 1 and shape.family.expert_bias:
        raise LayoutError(
            f"parallel.sp = {layout.sp}: ffn = tp would add the bias of an expert's output once a "
            "rank; try ffn = ep"
        )
    sends_whole_tokens = plan.ffn_cut.degree > 1 or (
        layout.ep > 1 and layout.dispatch is Dispatch.DEDUPLICATED
    )
    if sends_whole_tokens and plan.arithmetic.balance.capacity > 0:
        raise LayoutError(
            f"{layout.name()}: choices over a capacity are dropped in dispatch by rows only; try "
            "dispatch = all_to_all with ffn = ep"
        )
    if layout.ffn is FeedForward.TP and layout.ep > 1:
        raise LayoutError(
            f"parallel.ep = {layout.ep}: ffn = tp cuts every expert over sp and leaves none to ep; "
            "try ep = 1"
        )


def sizes(plan: Plan) -> Sizes:
    """The number behind every letter for one rank and one micro-batch; routed rows at balance,
    bounded by the worst.
    """
    shape, layout = plan.shape, plan.layout
    split = plan.heads
    tokens = plan.tokens // layout.sp
    group = layout.sp if layout.ffn is FeedForward.TP else layout.ep
    rows = tokens * shape.top_k * (group // layout.ep)
    width = plan.ffn_cut.degree
    visits = round(tokens * expected_visits(shape.experts, shape.top_k, layout.ep))
    numbers: Mapping[str, int] = {
        "B": plan.micro_batch,
        "S": plan.sequence,
        "N": plan.tokens,
        "T": tokens,
        "D": shape.hidden,
        "V": shape.vocab,
        "C": shape.head_dim,
        "c": shape.rotated,
        "H": shape.heads,
        "G": shape.kv_heads,
        "J": split.heads,
        "K": split.kv_heads,
        "h": shape.heads + shape.kv_heads,
        "Q": shape.qkv_columns,
        "A": shape.attention_columns,
        "g": shape.kv_heads * shape.head_dim,
        "P": (split.heads + 2 * split.kv_heads) * shape.head_dim,
        "M": split.heads * shape.head_dim,
        "X": layout.sp,
        "Y": layout.ep,
        "E": shape.experts,
        "l": shape.layers,
        "L": plan.local_experts,
        "k": shape.top_k,
        "U": tokens * group,
        "O": tokens * shape.top_k,
        "R": rows,
        "o": visits,
        "r": visits,
        "F": shape.ffn_hidden // width,
        "W": shape.dense_ffn_hidden // width,
        "w": shape.shared_hidden // width,
        "d": layout.world,
        "I": statistics_size(shape),
    }
    numbers = {**numbers, **_packets(plan, numbers)}
    reach = min(shape.top_k, layout.ep)
    worst = tokens * group * min(shape.top_k, plan.local_experts)
    return Sizes(
        numbers=numbers,
        bounds={"R": worst, "o": tokens * reach, "r": tokens * group},
        ranks=layout.degrees,
    )


def expected_visits(experts: int, top_k: int, ranks: int) -> Fraction:
    """The ranks that a token reaches on average where every set of experts is as likely.

    Example:
        >>> float(expected_visits(4, 2, 2)), float(expected_visits(8, 2, 8))
        (1.6666666666666667, 2.0)
    """
    missed = Fraction(comb(experts - experts // ranks, top_k), comb(experts, top_k))
    return ranks * (1 - missed)


def _halved(sequence: int) -> int:
    """Pairs of tokens of a sequence; of an odd one no degree above 1 divides anything."""
    return sequence // 2 if sequence % 2 == 0 else 1


CHANNEL_GROUP = 128  # tokens that share the scale of a channel (paper 4.2)
BLOCK = 128  # channels of a token that share one: DeepSeek-V3 (arXiv 2412.19437), 3.3
_SCALE_BYTES = 4


def _packets(plan: Plan, n: Mapping[str, int]) -> Mapping[str, int]:
    """Rows in eight bits: the bytes of one with its scales, and blocks with those of channels."""
    scales = 1 if plan.crossings.scales == "token" else -(-n["D"] // BLOCK)

    def packed(rows: int) -> int:
        return rows + _SCALE_BYTES * -(-rows // CHANNEL_GROUP)

    ragged = n["Y"] * packed(n["O"] // n["Y"])
    block = packed(n["T"])
    return {
        "p": n["D"] + _SCALE_BYTES * scales,
        "b": ragged, "a": ragged, "t": block, "u": n["Y"] * block,
    }  # fmt: skip


# The statistics vector: four sums, how many ranks were asked to stop, the reciprocals of the
# largest loss and squared norm of a step (0: any), the choices of each expert of each layer, then
# the choices that each layer dropped, last the rows that found no room.
# What ranks have to agree on travels with the one sum that every step makes anyway.
LOSS, AUX, Z, NORM2, STOP, LOSS_BOUND, NORM2_BOUND, LOADS = range(8)
OVERFLOW = -1


def load_places(shape: Shape) -> slice:
    """Where the loads stand in the statistics, layer by layer."""
    return slice(LOADS, LOADS + shape.layers * shape.experts)


def drop_places(shape: Shape) -> slice:
    """Where the dropped choices of each layer stand in the statistics."""
    first = load_places(shape).stop
    return slice(first, first + shape.layers)


def statistics_size(shape: Shape) -> int:
    """Elements of the vector that one all-reduce sums at the end of a step."""
    return drop_places(shape).stop + 1


# Elements of a chunk's logits: 256 MiB in bfloat16, where the accumulator of the head's weight is
# read and written once a chunk; 128 MiB in float32, where several tensors of that size are alive.
_NARROW_LOGITS, _WIDE_LOGITS = 2**27, 2**25


def loss_rows(plan: Plan) -> int:
    """Rows of a chunk of the cross-entropy, so that its logits stay small."""
    budget = _NARROW_LOGITS if plan.precision == "bfloat16" else _WIDE_LOGITS
    return max(256, 2 ** (budget // plan.shape.vocab).bit_length() // 2)


def is_all_gather(layout: Layout) -> bool:
    """Whether experts are reached by all-gather and reduce-scatter."""
    return layout.dispatch is Dispatch.ALL_GATHER

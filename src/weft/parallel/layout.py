"""The layout: how many ranks each axis has, where a rank stands on each, how attention is cut.

world   pp x dp x sp, sp fastest: rank = (pp_rank dp + dp_rank) sp + sp_rank
stage   the dp x sp ranks that hold the same layers; their replicas of the dense weights
sp      the ranks that share a micro-batch: Ulysses, tensor- or context-parallel in attention
dp      ranks of a stage that hold the same slice of what is cut over sp
ep      consecutive blocks of a stage
edp     ranks of a stage that hold the same experts
node    consecutive blocks of a stage, where the recipe names their size; then the replicas of a
        parameter are reached in two legs, `dense_intra` and `dense_inter` (`edp_` likewise)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from weft.errors import LayoutError


class Dispatch(StrEnum):
    """How tokens reach their experts (paper 1.3)."""

    ALL_TO_ALL = "all_to_all"
    ALL_GATHER = "all_gather"
    DEDUPLICATED = "deduplicated"  # all-to-all of tokens, each once a rank, instead of rows


class Attention(StrEnum):
    """What the ranks of `sp` do together in attention (paper 1.2)."""

    SP = "sp"  # all-to-all: each has whole heads of all tokens, weights replicated
    TP = "tp"  # all-gather and reduce-scatter: each has the weights of its heads
    CP = "cp"  # all-gather of keys and values: each has its queries of every head


class FeedForward(StrEnum):
    """How experts are spread over ranks (paper 1.2)."""

    EP = "ep"  # whole experts, over ep
    TP = "tp"  # a slice of the width of each, over sp


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """One stretch of a gradient's way home: an axis, and how many ranks a group of it has."""

    axis: str
    ranks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Degrees of each axis, and what is done on them. `dense` (dp x sp) and `edp` (dp x sp / ep)
    follow; `node` is the ranks of a node, 0 where all wires count alike.
    """

    pp: int = 1
    dp: int = 1
    sp: int = 1
    ep: int = 1
    dispatch: Dispatch = Dispatch.ALL_TO_ALL
    attention: Attention = Attention.SP
    ffn: FeedForward = FeedForward.EP
    node: int = 0
    pipeline: str = "1f1b"
    chunks: int = 1
    layers: tuple[int, ...] = ()

    @property
    def world(self) -> int:
        return self.pp * self.stage

    @property
    def stage(self) -> int:
        """Ranks of one pipeline stage."""
        return self.dp * self.sp

    @property
    def edp(self) -> int:
        return self.stage // self.ep

    def degree(self, axis: str) -> int:
        """How many ranks a group of that axis has."""
        return self.degrees[axis]

    @property
    def degrees(self) -> Mapping[str, int]:
        """Every axis of this layout with its degree."""
        whole = {
            "sp": self.sp,
            "dp": self.dp,
            "ep": self.ep,
            "dense": self.stage,
            "edp": self.edp,
            "world": self.world,
            "pp": self.pp,
            "ends": min(self.pp, 2),
        }
        legs = (leg for axis in ("dense", "edp", "dp") for leg in self.legs(axis))
        return {**whole, **{leg.axis: leg.ranks for leg in legs}}

    def legs(self, residence: str) -> tuple[Leg, ...]:
        """The stretches between the replicas of a parameter: one, or first inside a node and then
        between nodes.

        Example:
            >>> Layout(dp=4, sp=2, ep=2, node=4).legs("edp")
            (Leg(axis='edp_intra', ranks=2), Leg(axis='edp_inter', ranks=2))
        """
        apart = self._apart(residence)
        ranks = self.stage // apart
        if not self.node:
            return (Leg(axis=residence, ranks=ranks),)
        near = max(self.node // apart, 1)
        return (
            Leg(axis=f"{residence}_intra", ranks=near),
            Leg(axis=f"{residence}_inter", ranks=ranks // near),
        )

    def pp_rank(self, rank: int) -> int:
        """Which stage of the pipeline a rank is in."""
        return rank // self.stage

    def dp_rank(self, rank: int) -> int:
        """Which share of the micro-batches a rank runs."""
        return rank % self.stage // self.sp

    def sp_rank(self, rank: int) -> int:
        """Which share of a micro-batch's tokens a rank holds, and which slice of what is cut."""
        return rank % self.sp

    def replica(self, axis: str, rank: int) -> int:
        """The position of a rank among the replicas of the parameters that live on an axis.

        Example:
            >>> layout = Layout(dp=2, sp=4, ep=2)
            >>> [layout.replica(axis, 5) for axis in ("dense", "edp", "dp")]
            [5, 2, 1]
        """
        return rank % self.stage // self._apart(axis)

    def _apart(self, residence: str) -> int:
        """How far apart neighbouring replicas of a parameter are."""
        return {"dense": 1, "edp": self.ep, "dp": self.sp}[residence]

    def ep_rank(self, rank: int) -> int:
        """Which share of the experts a rank holds."""
        return rank % self.ep

    def name(self) -> str:
        """A short name, as in `sp2 dp2 ep4 all_gather` or `tp2 ffn-tp`."""
        degrees = (
            ("pp", self.pp),
            (self.attention.value, self.sp),
            ("dp", self.dp),
            ("ep", self.ep),
        )
        parts = [f"{axis}{n}" for axis, n in degrees if n > 1]
        if self.pp > 1:
            chunks = (f"v{self.chunks}",) if self.chunks > 1 else ()
            parts[1:1] = [self.pipeline, *chunks]
        if self.ep > 1:
            parts.append(self.dispatch.value)
        if self.sp > 1 and self.ffn is FeedForward.TP:
            parts.append("ffn-tp")
        if self.node:
            parts.append(f"node{self.node}")
        return " ".join(parts) or "one rank"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadSplit:
    """Attention heads on one rank of the sequence-parallel group: queries, keys/values, and how
    often a KV head repeats.
    """

    heads: int
    kv_heads: int
    replicas: int


def split_heads(heads: int, kv_heads: int, sp: int) -> HeadSplit:
    """How Ulysses cuts the heads; KV heads are replicated where sp exceeds them.

    Raises:
        LayoutError: sp does not divide the query heads, or neither of sp and kv_heads divides the
        other.

    Example:
        >>> split_heads(32, 4, 8)
        HeadSplit(heads=4, kv_heads=1, replicas=2)
    """
    if heads % sp:
        raise LayoutError(
            f"parallel.sp = {sp} does not divide the {heads} query heads; "
            f"try sp = {_below(heads, sp)}"
        )
    if kv_heads % sp and sp % kv_heads:
        raise LayoutError(
            f"parallel.sp = {sp} neither divides the {kv_heads} key/value heads nor is divided by "
            f"them; try sp = {_below(kv_heads, sp)}"
        )
    return HeadSplit(
        heads=heads // sp, kv_heads=max(kv_heads // sp, 1), replicas=max(sp // kv_heads, 1)
    )


def heads_of(layout: Layout, heads: int, kv_heads: int) -> HeadSplit:
    """The heads that a rank of a layout attends with; under context parallelism all of them.

    Example:
        >>> heads_of(Layout(sp=8, attention=Attention.CP), 32, 4)
        HeadSplit(heads=32, kv_heads=4, replicas=1)

    Raises:
        LayoutError: as `split_heads`.
    """
    cut = 1 if layout.attention is Attention.CP else layout.sp
    return split_heads(heads, kv_heads, cut)


def _below(number: int, limit: int) -> int:
    """The largest divisor of number that is at most limit."""
    return next(d for d in range(limit, 0, -1) if number % d == 0)

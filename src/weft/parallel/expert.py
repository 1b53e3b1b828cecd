"""Expert parallelism: rows to the ranks that hold their experts and back, in the paper's two ways.

    all-to-all    permute -> all-to-all -> reorder -> experts -> reorder -> all-to-all -> gather-sum
    all-gather    all-gather -> permute -> experts -> gather-sum -> reduce-scatter
                               (scatter and drop)     (fill and gather)

Rows are sorted by (expert, source rank). The gate weights travel with the rows, because they
multiply before FC2.

Paper: 1.3; elements a rank of all-to-all 2 k / n b s h (n - 1) / n, of all-gather and
reduce-scatter 2 b s h (n - 1) / n.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

from weft.parallel.strategy import ExpertStrategy


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """Rows that never left: every expert is here."""

    rows: Any
    row_weights: Any
    ends: Any
    order: Any
    slot_row: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchanged:
    """Rows that came by all-to-all, and the way back."""

    rows: Any
    row_weights: Any
    ends: Any
    order: Any
    slot_row: Any
    splits: Any
    received_order: Any
    received_inverse: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """Rows kept from an all-gather, where they belong in it, and the number of those for which
    there was no room, if there is a bound.
    """

    rows: Any
    row_weights: Any
    ends: Any
    order: Any
    slot_row: Any
    overflow: Any = None


Dispatched = Local | Exchanged | Gathered


PlanRows = Callable[..., tuple[Any, Any, Any, Any]]  # (o, experts, num_experts=) -> row maps


def plan_all(o: Any, experts: Any, *, num_experts: int) -> tuple[Any, Any, Any, Any]:
    """The map of all choices: order, slot_row, counts, ends."""
    return o.call("plan_rows", experts, experts=num_experts)


def plan_kept(o: Any, experts: Any, *, num_experts: int) -> tuple[Any, Any, Any, Any]:
    """The map of the choices that were not dropped; one named host synchronisation for their
    number.
    """
    every, here = {"first": 0, "local": num_experts}, {"U": "T", "L": "E", "R": "O"}
    (counts,) = o.call("count_local", experts, **every, renames=here)
    (kept,) = o.call("rows_to_host", counts, renames=here)
    order, slot_row, ends = o.call("plan_local", experts, kept, **every, renames=here)
    return order, slot_row, counts, ends


def dispatch_local(
    o: Any,
    h: Any,
    weights: Any,
    experts: Any,
    *,
    num_experts: int,
    top_k: int,
    plan: PlanRows = plan_all,
) -> Local:
    """Rows sorted by expert on one rank that holds them all."""
    order, slot_row, _, ends = plan(o, experts, num_experts=num_experts)
    here = {"R": "O"}
    (rows,) = o.call("permute", h, order, slot_row, top_k=top_k, renames=here)
    (row_weights,) = o.call("permute_weights", weights, order, slot_row, top_k=top_k, renames=here)
    return Local(rows=rows, row_weights=row_weights, ends=ends, order=order, slot_row=slot_row)


def combine_local(o: Any, d: Any, e: Local, *, top_k: int) -> Any:
    """Each token's rows summed."""
    (z,) = o.call("gather_sum", d, e.slot_row, e.order, top_k=top_k)
    return z


def dispatch_all_to_all(
    o: Any,
    h: Any,
    weights: Any,
    experts: Any,
    *,
    num_experts: int,
    top_k: int,
    plan: PlanRows = plan_all,
) -> Exchanged:
    """Rows sorted by (expert, source rank) on the rank that holds the expert; one named host
    synchronisation.
    """
    order, slot_row, counts, _ = plan(o, experts, num_experts=num_experts)
    (received,) = o.call("all_to_all_counts", counts, axis="ep", label="counts")
    leaving = {"R": "O"}
    (rows,) = o.call("permute", h, order, slot_row, top_k=top_k, renames=leaving)
    (scales,) = o.call("permute_weights", weights, order, slot_row, top_k=top_k, renames=leaving)
    (splits,) = o.call("splits_to_host", counts, received)
    rows = _exchange(o, rows, splits, "rows", reverse=False)
    scales = _exchange(o, scales, splits, "weights", reverse=False)
    there, back, ends = o.call("plan_received", received, splits)
    (rows,) = o.call("reorder", rows, there, back)
    (scales,) = o.call("reorder_weights", scales, there, back)
    return Exchanged(
        rows=rows,
        row_weights=scales,
        ends=ends,
        order=order,
        slot_row=slot_row,
        splits=splits,
        received_order=there,
        received_inverse=back,
    )


def combine_all_to_all(o: Any, d: Any, e: Exchanged, *, top_k: int) -> Any:
    """Rows sent home, then each token's summed."""
    (d,) = o.call("reorder", d, e.received_inverse, e.received_order)
    d = _exchange(o, d, e.splits, "outputs", reverse=True)
    (z,) = o.call("gather_sum", d, e.slot_row, e.order, top_k=top_k, renames={"R": "O"})
    return z


def _exchange(o: Any, rows: Any, splits: Any, label: str, *, reverse: bool) -> Any:
    op = "all_to_all_weights" if label == "weights" else "all_to_all_rows"
    renames = {"O": "R", "R": "O"} if reverse else {}
    (out,) = o.call(op, rows, splits, axis="ep", label=label, reverse=reverse, renames=renames)
    return out


def dispatch_all_gather(
    o: Any, h: Any, weights: Any, experts: Any, *, first: int, local: int, top_k: int
) -> Gathered:
    """Every token of the group, then the rows of this rank's experts: scatter and drop; one named
    host synchronisation for their number.
    """
    all_experts, all_weights = _gather_choices(o, weights, experts)
    (counts,) = o.call("count_local", all_experts, first=first, local=local)
    (tokens,) = o.call("all_gather", h, axis="ep", label="tokens")
    (count,) = o.call("rows_to_host", counts)
    maps = o.call("plan_local", all_experts, count, first=first, local=local)
    return _kept_rows(o, tokens, all_weights, *maps, top_k=top_k)


def dispatch_within(
    o: Any, h: Any, weights: Any, experts: Any, *, rows: int, first: int, local: int, top_k: int
) -> Gathered:
    """The same with room for so many rows, whatever comes: the host waits for nothing."""
    all_experts, all_weights = _gather_choices(o, weights, experts)
    (tokens,) = o.call("all_gather", h, axis="ep", label="tokens")
    *maps, overflow = o.call("plan_within", all_experts, rows=rows, first=first, local=local)
    kept = _kept_rows(o, tokens, all_weights, *maps, top_k=top_k)
    return replace(kept, overflow=overflow)


def _gather_choices(o: Any, weights: Any, experts: Any) -> tuple[Any, Any]:
    """The choices of the group and their gate weights."""
    (all_experts,) = o.call("all_gather_experts", experts, axis="ep", label="experts")
    (all_weights,) = o.call("all_gather_weights", weights, axis="ep", label="weights")
    return all_experts, all_weights


def _kept_rows(
    o: Any, tokens: Any, weights: Any, order: Any, slot_row: Any, ends: Any, *, top_k: int
) -> Gathered:
    """The rows of gathered tokens that a map keeps."""
    group = {"T": "U"}
    (rows,) = o.call("permute", tokens, order, slot_row, top_k=top_k, renames=group)
    (scales,) = o.call("permute_weights", weights, order, slot_row, top_k=top_k, renames=group)
    return Gathered(rows=rows, row_weights=scales, ends=ends, order=order, slot_row=slot_row)


def combine_all_gather(o: Any, d: Any, e: Gathered, *, top_k: int) -> Any:
    """A dense partial sum with zeros where nothing is, then the sum over ranks: fill and gather."""
    group = {"T": "U"}
    (partial,) = o.call("gather_sum", d, e.slot_row, e.order, top_k=top_k, renames=group)
    (z,) = o.call("reduce_scatter", partial, axis="ep", label="outputs")
    return z


# ---- the ways as strategies ----------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class EveryExpert(ExpertStrategy):
    """All experts on every rank: nothing is exchanged."""

    num_experts: int
    top_k: int
    plan: PlanRows = plan_all

    def dispatch(self, o: Any, h: Any, weights: Any, experts: Any) -> Local:
        return dispatch_local(
            o, h, weights, experts, num_experts=self.num_experts, top_k=self.top_k, plan=self.plan
        )

    def combine(self, o: Any, d: Any, e: Local) -> Any:
        return combine_local(o, d, e, top_k=self.top_k)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ByExchange(ExpertStrategy):
    """Rows to the ranks of their experts and back, by all-to-all."""

    num_experts: int
    top_k: int
    plan: PlanRows = plan_all

    def dispatch(self, o: Any, h: Any, weights: Any, experts: Any) -> Exchanged:
        return dispatch_all_to_all(
            o, h, weights, experts, num_experts=self.num_experts, top_k=self.top_k, plan=self.plan
        )

    def combine(self, o: Any, d: Any, e: Exchanged) -> Any:
        return combine_all_to_all(o, d, e, top_k=self.top_k)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ByGathering(ExpertStrategy):
    """Every token to every rank, partial sums back: all-gather and reduce-scatter."""

    first: int
    local: int
    top_k: int

    def dispatch(self, o: Any, h: Any, weights: Any, experts: Any) -> Gathered:
        return dispatch_all_gather(
            o, h, weights, experts, first=self.first, local=self.local, top_k=self.top_k
        )

    def combine(self, o: Any, d: Any, e: Gathered) -> Any:
        return combine_all_gather(o, d, e, top_k=self.top_k)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ByGatheringWithin(ExpertStrategy):
    """The same with room for a number of rows that the host knows beforehand."""

    rows: int
    first: int
    local: int
    top_k: int

    def dispatch(self, o: Any, h: Any, weights: Any, experts: Any) -> Gathered:
        return dispatch_within(
            o, h, weights, experts,
            rows=self.rows, first=self.first, local=self.local, top_k=self.top_k,
        )  # fmt: skip

    def combine(self, o: Any, d: Any, e: Gathered) -> Any:
        return combine_all_gather(o, d, e, top_k=self.top_k)

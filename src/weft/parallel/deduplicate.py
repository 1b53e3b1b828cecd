"""Expert parallelism by visits: a token goes once to a rank, however many of its experts are there.

    permute -> all-to-all -> expand -> experts -> sum -> all-to-all -> sum over ranks

What travels is a token with its choices and gate weights; the receiver makes a row of each choice
that is its own, and sums a token's rows before they go home. Both sums run in a fixed order, slot
by slot and then rank by rank, and so do their gradients.

Elements a rank, each way: visits x D; a token has as many visits as ranks it reaches. With choices
uniform over E experts, E / n of them on a rank, that is n (1 - C(E - E/n, k) / C(E, k)), at most
min(k, n), instead of k.
"""

from dataclasses import dataclass
from typing import Any, final

from weft.parallel.strategy import ExpertStrategy

_LEAVING = {"R": "o", "k": "Y"}
_HERE = {"T": "r"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Visited:
    """Rows of tokens that came once each, and the ways back."""

    rows: Any
    row_weights: Any
    ends: Any
    order: Any
    slot_row: Any
    splits: Any
    visit_order: Any
    visit_row: Any


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ByVisits(ExpertStrategy):
    """Tokens to the ranks of their experts and partial sums back, by all-to-all."""

    ranks: int
    local: int
    top_k: int

    def dispatch(self, o: Any, h: Any, weights: Any, experts: Any) -> Visited:
        on = {"axis": "ep", "reverse": False}
        cut = {"ranks": self.ranks, "local": self.local}
        (counts,) = o.call("count_visits", experts, **cut)
        (received,) = o.call(
            "all_to_all_counts", counts, axis="ep", label="counts", renames={"E": "2Y", "L": "2"}
        )
        splits, count = o.call("visits_to_host", counts, received)
        visit_order, visit_row, choices = o.call("plan_visits", experts, splits, **cut)
        (tokens,) = o.call("permute", h, visit_order, visit_row, top_k=self.ranks, renames=_LEAVING)
        (gates,) = o.call("permute_gates", weights, visit_order, visit_row, top_k=self.ranks)
        (choices,) = o.call("all_to_all_choices", choices, splits, label="choices", **on)
        there = {"O": "o", "R": "r"}
        (tokens,) = o.call("all_to_all_rows", tokens, splits, label="rows", renames=there, **on)
        pairs = {"O": "o k", "R": "r k"}
        (gates,) = o.call("all_to_all_weights", gates, splits, label="weights", renames=pairs, **on)
        order, slot_row, ends = o.call(
            "plan_local", choices, count, first=0, local=self.local, renames={"U": "r"}
        )
        by = {"top_k": self.top_k, "renames": _HERE}
        (rows,) = o.call("permute", tokens, order, slot_row, **by)
        (scales,) = o.call("permute_weights", gates, order, slot_row, **by)
        return Visited(
            rows=rows,
            row_weights=scales,
            ends=ends,
            order=order,
            slot_row=slot_row,
            splits=splits,
            visit_order=visit_order,
            visit_row=visit_row,
        )

    def combine(self, o: Any, d: Any, e: Visited) -> Any:
        (partial,) = o.call("gather_sum", d, e.slot_row, e.order, top_k=self.top_k, renames=_HERE)
        (partial,) = o.call(
            "all_to_all_rows", partial, e.splits, axis="ep", label="outputs", reverse=True,
            renames={"O": "r", "R": "o"},
        )  # fmt: skip
        (z,) = o.call(
            "gather_sum", partial, e.visit_row, e.visit_order, top_k=self.ranks, renames=_LEAVING
        )
        return z

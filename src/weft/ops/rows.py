"""The map between tokens and rows of experts, made once from the routing, and the moves by it.

Choice j of token t has number c = t k + j. Rows lie by expert, within an expert by choice (or
source rank):

    order[row] = choice        slot_row[t, j] = row, or -1 where the row is not on this rank
    ends[e] = end row

There may be room for more rows than there are; what lies behind the last end is not read.

Every movement is a gather through one of the two; the sum of a token's rows runs over its slots in
order. Nothing is scattered into a sum, so no bit depends on the order of threads. All of it holds
for no rows at all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.ops.precision import accumulation_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Rows that go to each destination rank, and that come from each source rank."""

    send: tuple[int, ...]
    receive: tuple[int, ...]


# ---- maps ----


def plan_rows(chosen: Tensor, *, experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the map of all choices sorted by expert: order, slot_row, counts and ends."""
    by_expert, order = chosen.flatten().sort(stable=True)
    ends = _ends(by_expert, experts)
    return order, _inverse(order).view(chosen.shape), _counts(ends), ends.to(torch.int32)


def plan_received(counts: Tensor, splits: Splits) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the map from rows by (source, expert) to rows by (expert, source): order, inverse,
    ends.

    Shapes:
        counts [Y, L] -> order [R], inverse [R], ends [L]
    """
    arrived = (counts.flatten().cumsum(0) - counts.flatten()).view(counts.shape)
    sorted_starts = (counts.T.flatten().cumsum(0) - counts.T.flatten()).view(counts.T.shape).T
    total = sum(splits.receive)
    moved = (sorted_starts - arrived).flatten()  # by how much each run of rows is shifted
    inverse = torch.arange(total, device=counts.device) + moved.repeat_interleave(
        counts.flatten(), output_size=total
    )
    return _inverse(inverse), inverse, counts.sum(0).cumsum(0).to(torch.int32)


def count_local(chosen: Tensor, *, first: int, local: int) -> Tensor:
    """Returns how many choices fell on each of the experts [first, first + local)."""
    by_expert = chosen.flatten().sort().values
    edges = torch.arange(first, first + local + 1, device=chosen.device)
    return torch.searchsorted(by_expert, edges).diff()


def plan_local(
    chosen: Tensor, rows: int, *, first: int, local: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the map of the choices on this rank's experts: order, slot_row and ends.

    Shapes:
        chosen [U, k] of all tokens of the group -> order [R], slot_row [U, k] with -1 elsewhere,
        ends [L]
    """
    expert = chosen.flatten() - first
    elsewhere = (expert < 0) | (expert >= local)
    by_expert, order = expert.masked_fill(elsewhere, local).sort(stable=True)
    order = order[:rows]
    slot_row = torch.full_like(expert, -1)
    slot_row[order] = torch.arange(rows, device=chosen.device)
    return order, slot_row.view(chosen.shape), _ends(by_expert, local).to(torch.int32)


def plan_within(
    chosen: Tensor, *, rows: int, first: int, local: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the same map where there is room for so many rows: order, slot_row, ends, overflow.

    Choices that find no room are those of the last rows, and have none; `overflow` [1] counts them.
    `order` is filled up with the first choice. Nothing is read by the host.
    """
    expert = chosen.flatten() - first
    elsewhere = (expert < 0) | (expert >= local)
    by_expert, order = expert.masked_fill(elsewhere, local).sort(stable=True)
    ends = _ends(by_expert, local)
    held = ends[-1:].clamp_max(rows)
    row = _inverse(order)
    slot_row = row.masked_fill_(row >= held, -1)
    spare = torch.arange(rows, device=chosen.device) >= held
    order = order[:rows].masked_fill(spare, 0)
    overflow = ends[-1:] - held
    return order, slot_row.view(chosen.shape), ends.clamp_max(rows).to(torch.int32), overflow


# ---- movement ----


def permute(h: Tensor, order: Tensor, slot_row: Tensor, *, top_k: int) -> Tensor:
    """Returns each row's token."""
    return h.index_select(0, order // top_k)


def permute_dgrad(drows: Tensor, slot_row: Tensor, *, top_k: int) -> Tensor:
    """Returns each token's sum over its rows' gradients."""
    return _sum_slots(drows, slot_row)


def permute_weights(weights: Tensor, order: Tensor, slot_row: Tensor, *, top_k: int) -> Tensor:
    """Returns the gate weight of each row."""
    return weights.flatten().index_select(0, order)


def permute_weights_dgrad(drow_weights: Tensor, slot_row: Tensor, *, top_k: int) -> Tensor:
    """Returns the gradient of each choice's weight; 0 where its row is not on this rank."""
    if drow_weights.shape[0] == 0:
        return drow_weights.new_zeros(slot_row.shape)
    return drow_weights[slot_row.clamp_min(0)].masked_fill_(slot_row < 0, 0)


def reorder(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Returns the rows, or the rows' gate weights, in another order."""
    return rows.index_select(0, order)


def reorder_dgrad(dout: Tensor, inverse: Tensor, order: Tensor) -> Tensor:
    """Returns the gradients in the first order."""
    return dout.index_select(0, inverse)


def gather_sum(rows: Tensor, slot_row: Tensor, order: Tensor, *, top_k: int) -> Tensor:
    """Returns each token's sum over its rows.

    Numerics:
        k terms in slot order in the accumulation dtype, rounded once. An absent slot adds 0 times
        some row, so it adds nothing as long as all rows are finite; without any row, all is zero.
    """
    return _sum_slots(rows, slot_row)


def gather_sum_dgrad(dz: Tensor, order: Tensor, *, top_k: int) -> Tensor:
    """Returns each row's copy of its token's gradient."""
    return dz.index_select(0, order // top_k)


# ---- host ----


def splits_to_host(sent: Tensor, received: Tensor) -> Splits:
    """Returns the splits of the row exchange, by one copy from device to host.

    Shapes:
        sent [E] rows for each expert, those of a rank next to each other; received [Y, L]
    """
    num_ranks = received.shape[0]
    both = torch.stack((sent.unflatten(0, (num_ranks, -1)).sum(1), received.sum(1)))
    send, receive = both.tolist()
    return Splits(send=tuple(send), receive=tuple(receive))


def rows_to_host(counts: Tensor) -> int:
    """Returns the number of rows on this rank."""
    return int(counts.sum())


def _ends(by_expert: Tensor, experts: int) -> Tensor:
    ids = torch.arange(experts, device=by_expert.device)
    return torch.searchsorted(by_expert, ids, right=True)


def _counts(ends: Tensor) -> Tensor:
    return ends.diff(prepend=ends.new_zeros(1))


def _inverse(order: Tensor) -> Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0], device=order.device)
    return inverse


def _sum_slots(rows: Tensor, slot_row: Tensor) -> Tensor:
    if rows.shape[0] == 0:
        return rows.sum(0).repeat(slot_row.shape[0], 1)  # zeros that still depend on the rows
    wide = accumulation_dtype(rows.dtype)
    row = slot_row.clamp_min(0)
    present = (slot_row >= 0).to(wide)  # a product by it costs a sixth of a mask on a CPU
    total = rows.index_select(0, row[:, 0]).to(wide).mul_(present[:, :1])
    for j in range(1, slot_row.shape[1]):
        term = rows.index_select(0, row[:, j]).to(wide)
        total.addcmul_(term, present[:, j : j + 1])
    return total.masked_fill_(~present.any(), 0).to(rows.dtype)

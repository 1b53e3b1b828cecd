"""Row maps: permutations that undo each other, shares of ranks that tile the whole, and no rows at
all.
"""

import pytest
import torch

from weft.ops.rows import (
    Splits,
    gather_sum,
    permute,
    plan_local,
    plan_received,
    plan_rows,
    plan_within,
    reorder,
    reorder_dgrad,
    splits_to_host,
)
from weft.testing.case import E, K, T, cases


def chosen_of(label):
    return cases("plan_rows", torch.float64)[label].inputs[0]


ROUTINGS = list(cases("plan_rows", torch.float64))


@pytest.mark.parametrize("label", ROUTINGS)
def test_slot_rows_undo_the_order(label):
    chosen = chosen_of(label)
    order, slot_row, counts, ends = plan_rows(chosen, experts=E)
    assert torch.equal(slot_row.flatten()[order], torch.arange(chosen.numel()))
    assert torch.equal(counts.cumsum(0), ends.long())
    assert ends[-1] == chosen.numel()


@pytest.mark.parametrize("label", ROUTINGS)
def test_experts_ascend_and_choices_keep_their_order_within_one(label):
    chosen = chosen_of(label)
    order, *_ = plan_rows(chosen, experts=E)
    keys = [(int(chosen.flatten()[c]), int(c)) for c in order]
    assert keys == sorted(keys)


@pytest.mark.parametrize("label", ROUTINGS)
def test_local_maps_of_all_ranks_tile_the_global_one(label):
    chosen = chosen_of(label)
    order, slot_row, counts, _ = plan_rows(chosen, experts=E)
    pieces, start, summed = [], 0, torch.zeros_like(slot_row)
    for first, local in ((0, 2), (2, 2), (4, 1)):
        rows = int(counts[first : first + local].sum())
        mine, slots, ends = plan_local(chosen, rows, first=first, local=local)
        assert ends[-1] == rows
        summed += torch.where(slots >= 0, slots + start, 0)
        pieces, start = [*pieces, mine], start + rows
    assert torch.equal(torch.cat(pieces), order)
    assert torch.equal(summed, slot_row)


@pytest.mark.parametrize("label", ROUTINGS)
def test_summing_permuted_rows_gives_k_times_each_token(label):
    chosen = chosen_of(label)
    top_k = chosen.shape[1]
    h = torch.randn(chosen.shape[0], 8, dtype=torch.float64)
    order, slot_row, *_ = plan_rows(chosen, experts=E)
    rows = permute(h, order, slot_row, top_k=top_k)
    torch.testing.assert_close(gather_sum(rows, slot_row, order, top_k=top_k), top_k * h)


@pytest.mark.parametrize("spare", [0, 1, 5])
@pytest.mark.parametrize("label", ROUTINGS)
def test_room_for_more_rows_changes_no_row(label, spare):
    chosen = chosen_of(label)
    count = int(((chosen >= 1) & (chosen < 3)).sum())
    rows = min(count + spare, chosen.numel())
    order, slot_row, ends = plan_local(chosen, count, first=1, local=2)
    found = plan_within(chosen, rows=rows, first=1, local=2)
    assert torch.equal(found[0], torch.cat((order, order.new_zeros(rows - count))))
    assert torch.equal(found[1], slot_row)
    assert torch.equal(found[2], ends)
    assert found[3].tolist() == [0]


@pytest.mark.parametrize("label", ROUTINGS)
def test_rows_without_room_are_counted_and_in_no_slot(label):
    chosen = chosen_of(label)
    count = int(((chosen >= 1) & (chosen < 3)).sum())
    order, slot_row, ends = plan_local(chosen, count, first=1, local=2)
    for rows in range(1, count):
        found = plan_within(chosen, rows=rows, first=1, local=2)
        assert torch.equal(found[0], order[:rows])
        assert torch.equal(found[1], slot_row.masked_fill(slot_row >= rows, -1))
        assert torch.equal(found[2], ends.clamp_max(rows))
        assert found[3].tolist() == [count - rows]


def test_a_rank_with_room_and_no_rows_gives_zeros_whatever_lies_there():
    chosen = torch.full((3, 2), 7)
    order, slot_row, _, _ = plan_within(chosen, rows=4, first=1, local=2)
    rows = torch.full((4, 8), float("nan"))
    assert torch.equal(gather_sum(rows, slot_row, order, top_k=2), torch.zeros(3, 8))


def test_received_rows_come_back_where_they_were():
    counts = torch.tensor([[2, 0], [1, 3], [0, 1]])
    order, inverse, ends = plan_received(counts, Splits(send=(0, 0, 0), receive=(2, 4, 1)))
    rows = torch.arange(7).unsqueeze(1)
    assert torch.equal(reorder_dgrad(reorder(rows, order, inverse), inverse, order), rows)
    assert ends.tolist() == [3, 7]


def test_a_rank_without_rows_gives_zeros_that_autograd_can_follow():
    rows = torch.zeros(0, 8, requires_grad=True)
    nowhere = torch.full((T, K), -1)
    z = gather_sum(rows, nowhere, torch.zeros(0, dtype=torch.int64), top_k=K)
    assert z.shape == (T, 8)
    assert not z.any()
    assert z.requires_grad


def test_absent_slots_add_nothing():
    rows = torch.tensor([[7.0], [2.0]])
    z = gather_sum(rows, torch.tensor([[-1, 1], [0, 1], [-1, -1]]), torch.tensor([0, 1]), top_k=2)
    assert z.flatten().tolist() == [2.0, 9.0, 0.0]


def test_a_row_that_is_not_a_number_stays_with_its_token():
    rows = torch.tensor([[float("nan")], [2.0]])
    z = gather_sum(rows, torch.tensor([[1, 1], [0, 1]]), torch.tensor([0, 1]), top_k=2)
    assert z.isnan().flatten().tolist() == [False, True]


def test_rows_are_summed_in_slot_order():
    """In float32, (big - big) + small and big - (big - small) differ: only slot order gives the
    first.
    """
    rows = torch.tensor([[1.0], [1e8], [-1e8]])
    z = gather_sum(rows, torch.tensor([[1, 2, 0], [0, 1, 2]]), torch.tensor([0, 1, 2]), top_k=3)
    assert z.flatten().tolist() == [1.0, 0.0]


def test_splits_take_one_copy_to_the_host(monkeypatch):
    copies = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: copies.append(x) or to_list(x))
    splits = splits_to_host(torch.tensor([1, 2, 3, 4]), torch.tensor([[5, 6], [7, 8]]))
    assert splits == Splits(send=(3, 7), receive=(11, 15))
    assert len(copies) == 1

"""Maps over several parts, of several steps each, and of experts that fill no power of two."""

import pytest
import torch
from torch import Tensor

from weft.ops import rows as reference

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.triton import maps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS, TOP_K = 101, 8  # six whole steps and a ragged one
WIDTHS = (1, 5, 33, 128, 512)
HELD = [(60, 0, 30), (128, 64, 64), (12, 11, 1)]  # experts, and which of them are here


@pytest.fixture(autouse=True)
def _few_parts(monkeypatch):
    """Parts of three steps, and counts of which not all are read at once."""
    monkeypatch.setattr(maps, "_PARTS", 3)
    monkeypatch.setattr(maps, "_CELLS", 128)
    monkeypatch.setattr(maps, "_COUNTED", 256)


def routings(experts: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(experts)
    spread = torch.randint(experts, (TOKENS, TOP_K), generator=generator)
    return {
        "spread": spread,
        "all_to_first": torch.zeros_like(spread),
        "all_to_last": torch.full_like(spread, experts - 1),
        "skewed": spread.masked_fill(torch.rand(spread.shape, generator=generator) < 0.7, 0),
        "sorted": spread.flatten().sort().values.view_as(spread),
        "nobody's": torch.where(spread % 3 == 0, experts, spread),
        "one": spread[:1, :1],
        "one_step": spread[: maps._STEP // TOP_K],
        "nothing": spread[:0],
    }


LABELS = list(routings(1))


def require_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == wanted.dtype
        assert torch.equal(actual.cpu(), wanted)


@pytest.mark.parametrize("label", [label for label in LABELS if label != "nobody's"])
@pytest.mark.parametrize("experts", WIDTHS)
def test_all_choices_have_the_rows_of_a_stable_sort(experts, label):
    chosen = routings(experts)[label]
    found = maps.plan_rows(chosen.to(DEVICE), experts=experts)
    require_same(found, reference.plan_rows(chosen, experts=experts))


@pytest.mark.parametrize("share", [0, 0.01, 0.4, 1])
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize(("experts", "first", "local"), HELD)
def test_rows_that_find_room_are_the_first(experts, first, local, label, share):
    chosen, held = routings(experts)[label], {"first": first, "local": local}
    rows = int(share * chosen.numel())
    found = maps.plan_within(chosen.to(DEVICE), rows=rows, **held)
    require_same(found, reference.plan_within(chosen, rows=rows, **held))


@pytest.mark.parametrize("label", ["spread", "nothing"])
def test_more_room_than_choices_is_filled_up_with_the_first(label):
    chosen, spare = routings(5)[label], 1000
    rows = chosen.numel() + spare
    order, slot_row, ends, overflow = maps.plan_within(
        chosen.to(DEVICE), rows=rows, first=0, local=5
    )
    expected = reference.plan_rows(chosen, experts=5)
    require_same((order[:-spare], slot_row, ends), (expected[0], expected[1], expected[3]))
    assert not order[-spare:].any()
    assert overflow.tolist() == [0]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize(("experts", "first", "local"), HELD)
def test_a_rank_has_its_own_rows_and_counts(experts, first, local, label):
    chosen, held = routings(experts)[label], {"first": first, "local": local}
    counts = maps.count_local(chosen.to(DEVICE), **held)
    require_same((counts,), (reference.count_local(chosen, **held),))
    rows = int(counts.sum())
    found = maps.plan_local(chosen.to(DEVICE), rows, **held)
    require_same(found, reference.plan_local(chosen, rows, **held))


@pytest.mark.parametrize(("first", "stretch", "rows"), [(0, 101, 1), (37, 27, 6)])
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("experts", WIDTHS)
def test_each_sequence_has_its_own_load(experts, label, first, stretch, rows):
    chosen = routings(experts)[label]
    expected = torch.zeros(rows, experts + 1, dtype=torch.int64)
    sequence = (first + torch.arange(len(chosen))) // stretch
    for row, choices in zip(sequence.tolist(), chosen, strict=True):
        expected[row] += torch.bincount(choices, minlength=experts + 1)
    attrs = {"experts": experts, "first": first, "stretch": stretch, "rows": rows}
    found = maps.count_load(chosen.to(DEVICE), **attrs)
    require_same((found,), (expected[:, :experts],))


def test_two_choices_of_one_expert_in_another_order_are_another_map():
    chosen = routings(5)["spread"]
    order, *others = maps.plan_rows(chosen.to(DEVICE), experts=5)
    order[[0, 1]] = order[[1, 0]]
    with pytest.raises(AssertionError):
        require_same((order, *others), reference.plan_rows(chosen, experts=5))


def test_a_count_that_skips_a_step_is_another_map(monkeypatch):
    chosen = routings(5)["spread"]
    counts = maps._count

    def careless(*args, **kwargs):
        chosen, partial, choices, *rest = args
        counts[partial.shape[0],](chosen, partial, choices - maps._STEP, *rest, **kwargs)

    monkeypatch.setattr(maps, "_count", {(3,): careless})
    with pytest.raises(AssertionError):
        require_same(
            maps.plan_rows(chosen.to(DEVICE), experts=5), reference.plan_rows(chosen, experts=5)
        )

"""A weight gradient touches its expert alone, whatever the rows and the sides."""

from functools import partial

import pytest
import torch
from tests.ops.test_registry import Derivation, require_all

from weft.errors import VerificationError
from weft.graph.opset import OPS
from weft.ops.registry import reference_bodies
from weft.testing.case import cases
from weft.testing.tolerance import gradient_bound, require_close

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.triton import grouped

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NARROW = torch.bfloat16 if DEVICE == "cuda" else torch.float32

# the interpreter has no addition by the copy engine
TILES = [grouped.SHORT, grouped.LONG] if DEVICE == "cuda" else [grouped.SHORT]
FIRST_TILES = [*TILES, grouped.SHORT_FIRST, grouped.LONG_FIRST]
BODIES = {**reference_bodies(), "expert_up.wgrad": grouped.expert_wgrad}


@pytest.mark.parametrize("columns", [1, 16, 33])  # less than a tile, one, two and some
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.n} columns")
def test_a_weight_gradient_of_any_shape_stays_inside_its_expert(rows, columns, tile):
    """Experts with no row, one row and a whole step of rows; sides that no tile divides."""
    counts = torch.tensor([rows, 0, 1, 64])
    total, m, n = int(counts.sum()), 8 * columns, 136
    maker = torch.Generator().manual_seed(rows * columns)
    draw = partial(torch.randn, generator=maker)
    du, x, acc = (draw(*s).to(DEVICE) for s in ((total, m), (total, n), (4, m, n)))
    du, x = du.to(NARROW), x.to(NARROW)
    ends = counts.cumsum(0).to(torch.int32).to(DEVICE)
    expected = acc.double()
    for e, (start, stop) in enumerate(zip([0, *ends.tolist()], ends.tolist(), strict=False)):
        expected[e] += du[start:stop].double().T @ x[start:stop].double()
    untouched = acc[1].clone()
    grouped.expert_wgrad_tiled(acc, du, x, ends, tile)
    bound = gradient_bound(OPS["expert_up"].tolerance, torch.float32, total)
    require_close(acc, expected, bound, "expert_wgrad")
    assert torch.equal(acc[1], untouched)


@pytest.mark.parametrize("columns", [1, 16, 33])
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("tile", FIRST_TILES, ids=lambda tile: f"{tile.n} by {tile.part}")
def test_a_first_gradient_has_the_bits_of_one_added_to_zeros(tile, rows, columns):
    """It is written over what is no number, for experts without rows too, and nowhere else."""
    counts = torch.tensor([rows, 0, 1, 64])
    total, m, n = int(counts.sum()), 8 * columns, 136
    maker = torch.Generator().manual_seed(rows * columns)
    du, x = (torch.randn(total, w, generator=maker).to(DEVICE, NARROW) for w in (m, n))
    ends = counts.cumsum(0).to(torch.int32).to(DEVICE)
    around = torch.full((6, m, n), torch.nan, device=DEVICE)
    grouped.expert_wgrad_first_tiled(around[1:5], du, x, ends, tile)
    added = torch.zeros(4, m, n, device=DEVICE)
    grouped.expert_wgrad_tiled(added, du, x, ends, TILES[0])
    assert torch.equal(around[1:5], added)
    assert around[0].isnan().all()
    assert around[5].isnan().all()


def test_a_second_gradient_that_is_written_too_is_caught():
    """Sabotage: what was there before is lost."""
    du, x, ends = torch.ones(4, 16), torch.ones(4, 16), torch.tensor([4], dtype=torch.int32)
    du, x, ends = du.to(DEVICE, NARROW), x.to(DEVICE, NARROW), ends.to(DEVICE)
    once = grouped.expert_wgrad_first(torch.empty(1, 16, 16, device=DEVICE), du, x, ends)
    wrong = grouped.expert_wgrad_first(once.clone(), du, x, ends)
    assert not torch.equal(wrong, 2 * once)
    if DEVICE == "cuda":
        assert torch.equal(grouped.expert_wgrad(once.clone(), du, x, ends), 2 * once)


def test_no_rows_at_all_write_zeros():
    acc, ends = torch.full((2, 8, 8), torch.nan), torch.zeros(2, dtype=torch.int32)
    made = grouped.expert_wgrad_first(acc, torch.empty(0, 8), torch.empty(0, 8), ends)
    assert made is acc
    assert not made.any()


def test_rows_of_another_expert_are_caught():
    """Sabotage: the same comparison with the ends of another routing must fail."""
    op, case = OPS["expert_up"], cases("expert_up", NARROW, DEVICE)["uneven"]
    derivation = Derivation(op, BODIES, case)
    swapped = torch.tensor([9, 12, 13, 18], dtype=torch.int32, device=DEVICE)
    honest = derivation.derived_weights(derivation.accumulators())
    wrong = derivation.derived_weights(derivation.accumulators(), ends=swapped)
    with pytest.raises(VerificationError):
        require_all(wrong, honest, gradient_bound(op.tolerance, NARROW, case.length), op.name)


def test_few_rows_an_expert_take_small_tiles(monkeypatch):
    """What is measured faster is chosen by the rows that are there, not by the device."""
    taken = []
    monkeypatch.setattr(grouped, "expert_wgrad_tiled", lambda *operands: taken.append(operands[-1]))
    acc, x, ends = torch.empty(2, 8, 8), torch.empty(0, 8), torch.zeros(2, dtype=torch.int32)
    monkeypatch.setattr(
        grouped, "expert_wgrad_first_tiled", lambda *operands: taken.append(operands[-1])
    )
    for rows in (2 * grouped.MANY_ROWS - 1, 2 * grouped.MANY_ROWS):
        grouped.expert_wgrad(acc, torch.empty(rows, 8), x, ends)
        grouped.expert_wgrad_first(acc, torch.empty(rows, 8), x, ends)
    assert taken == [grouped.SHORT, grouped.SHORT_FIRST, grouped.LONG, grouped.LONG_FIRST]

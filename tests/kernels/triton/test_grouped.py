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
    for rows in (2 * grouped.MANY_ROWS - 1, 2 * grouped.MANY_ROWS):
        grouped.expert_wgrad(acc, torch.empty(rows, 8), x, ends)
    assert taken == [grouped.SHORT, grouped.LONG]

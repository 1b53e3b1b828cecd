"""SwiGLU of routed rows ends where they do: room behind the last end is left as it is."""

import pytest
import torch
from torch.utils import deterministic

from weft.graph.opset import OPS
from weft.ops import grouped
from weft.testing.tolerance import gradient_bound, require_close

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.triton import swiglu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROOM, WIDTH = 18, 520  # rows of more programs than one, and channels of more steps than one
BOUND = gradient_bound(OPS["swiglu"].tolerance, torch.float32, WIDTH)


def operands(held):
    maker = torch.Generator().manual_seed(held)
    made = (torch.randn(ROOM, w, generator=maker) for w in (WIDTH, 2 * WIDTH))
    ds, u = (x.to(DEVICE) for x in made)
    weights = torch.rand(ROOM, generator=maker).to(DEVICE)
    return ds, u, weights, torch.tensor([held // 2, held // 2, held], dtype=torch.int32).to(DEVICE)


@pytest.fixture
def _new_buffers_hold_no_number():
    """So that what is not written is seen."""
    torch.use_deterministic_algorithms(mode=True)
    setattr(deterministic, "fill_uninitialized_memory", True)  # noqa: B010 - as runtime.backends
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.mark.usefixtures("_new_buffers_hold_no_number")
@pytest.mark.parametrize("held", [0, 1, 4, 7, 17, ROOM])
def test_rows_that_are_there_are_the_reference_and_all_behind_is_left(held):
    ds, u, weights, ends = operands(held)
    wide = [x[:held].double() for x in (ds, u, weights)]
    expected = (
        grouped.swiglu(wide[1], wide[2], ends), *grouped.swiglu_dgrad(*wide, ends),
    )  # fmt: skip
    found = swiglu.swiglu(u, weights, ends), *swiglu.swiglu_dgrad(ds, u, weights, ends)
    for name, actual, wanted in zip(("s", "du", "dweight"), found, expected, strict=True):
        require_close(actual[:held], wanted, BOUND, name)
        assert actual[held:].isnan().all(), name


@pytest.mark.usefixtures("_new_buffers_hold_no_number")
def test_room_that_is_taken_for_rows_is_caught():
    """Sabotage: with an end behind the rows that are there, a row of room is written."""
    ds, u, weights, ends = operands(7)
    found = swiglu.swiglu(u, weights, ends + 1), *swiglu.swiglu_dgrad(ds, u, weights, ends + 1)
    assert not any(x[7].isnan().any() for x in found)


def test_swiglu_without_experts_has_no_ends():
    ds, u, *_ = operands(ROOM)
    require_close(swiglu.dense_swiglu(u), grouped.dense_swiglu(u.double()), BOUND, "s")
    expected = grouped.dense_swiglu_dgrad(ds.double(), u.double())
    require_close(swiglu.dense_swiglu_dgrad(ds, u), expected, BOUND, "du")

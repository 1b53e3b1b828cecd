"""Every body in Triton is its reference: forward and gradients, for every kind of routing."""

from functools import partial

import pytest
import torch
from tests.ops.test_registry import (
    DERIVED,
    Derivation,
    check_narrow_gradients,
    copied,
    labelled,
    require_all,
    tuple_of,
    widened,
)

from weft.errors import VerificationError
from weft.graph.opset import OPS
from weft.ops.precision import add_product
from weft.ops.registry import reference_bodies
from weft.testing.case import cases
from weft.testing.tolerance import gradient_bound, relative_bound, require_close

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.triton import grouped, loss
from weft.kernels.triton.table import triton_bodies

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16] if DEVICE == "cuda" else [torch.float32]
NAMES = {name.partition(".")[0] for name in triton_bodies()}
OPERATORS = [op for op in OPS.values() if op.name in NAMES]
GRADIENTS = [op for op in DERIVED if op.name in NAMES and not op.fused_backward]


@pytest.fixture(autouse=True, scope="module")
def _what_an_interpreter_lacks():
    """It has no addition by the copy engine, and a CPU no product of a wider dtype."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setattr(grouped, "DEFAULT", grouped.Tile(reduce=False))
            patch.setattr(loss, "add_narrow_product", add_product)
        yield


def bodies():
    return {**reference_bodies(), **triton_bodies()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "label"), labelled(GRADIENTS))
def test_gradients_agree_with_float64(op, label, dtype):
    check_narrow_gradients(op, bodies(), cases(op.name, dtype, DEVICE)[label], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "label"), labelled(OPERATORS))
def test_outputs_agree_with_float64(op, label, dtype):
    case = cases(op.name, dtype, DEVICE)[label]
    found = tuple_of(bodies()[op.name](*copied(case), **case.attrs))
    wide = tuple_of(reference_bodies()[op.name](*widened(case).inputs, **case.attrs))
    bound = relative_bound(op.tolerance, dtype, case.length)
    for actual, expected, port in zip(found, wide, op.outputs, strict=True):
        if torch.isfinite(expected).all():
            require_close(actual, expected, bound, f"{op.name} {port.name}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("label", cases("cross_entropy", torch.float64))
def test_the_loss_and_its_gradients_agree_with_float64(label, dtype):
    op, case = OPS["cross_entropy"], cases("cross_entropy", dtype, DEVICE)[label]
    results = []
    for table, operands in ((bodies(), copied(case)), (reference_bodies(), widened(case).inputs)):
        w = operands[1]
        acc = torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32))
        results.append(table["cross_entropy.fused"](*operands, acc, **case.attrs))
    require_all(*results, gradient_bound(op.tolerance, dtype, case.length), op.name)


@pytest.mark.parametrize("columns", [1, 100, 128, 257])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
def test_a_weight_gradient_of_any_shape_stays_inside_its_expert(rows, columns):
    """Experts with no row, one row and a whole step of rows; sides that no tile divides."""
    counts = torch.tensor([rows, 0, 1, 64])
    total, m, n = int(counts.sum()), 8 * columns, 136
    maker = torch.Generator().manual_seed(rows * columns)
    draw = partial(torch.randn, generator=maker)
    du, x, acc = (draw(*s).to(DEVICE) for s in ((total, m), (total, n), (4, m, n)))
    du, x = du.to(DTYPES[0]), x.to(DTYPES[0])
    ends = counts.cumsum(0).to(torch.int32).to(DEVICE)
    expected = acc.double()
    for e, (start, stop) in enumerate(zip([0, *ends.tolist()], ends.tolist(), strict=False)):
        expected[e] += du[start:stop].double().T @ x[start:stop].double()
    untouched = acc[1].clone()
    grouped.expert_wgrad(acc, du, x, ends)
    bound = gradient_bound(OPS["expert_up"].tolerance, torch.float32, total)
    require_close(acc, expected, bound, "expert_wgrad")
    assert torch.equal(acc[1], untouched)


def test_rows_of_another_expert_are_caught():
    """Sabotage: the same comparison with the ends of another routing must fail."""
    op, case = OPS["expert_up"], cases("expert_up", DTYPES[0], DEVICE)["uneven"]
    derivation = Derivation(op, bodies(), case)
    swapped = torch.tensor([9, 12, 13, 18], dtype=torch.int32, device=DEVICE)
    honest = derivation.derived_weights(derivation.accumulators())
    wrong = derivation.derived_weights(derivation.accumulators(), ends=swapped)
    with pytest.raises(VerificationError):
        require_all(wrong, honest, gradient_bound(op.tolerance, DTYPES[0], case.length), op.name)


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "label"), labelled(OPERATORS))
def test_two_runs_give_the_same_bits(op, label):
    case = cases(op.name, torch.bfloat16, DEVICE)[label]
    first, second = (tuple_of(bodies()[op.name](*copied(case), **case.attrs)) for _ in range(2))
    assert all(
        torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(first, second, strict=True)
    )

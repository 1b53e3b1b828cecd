"""Every body in Triton is its reference: forward and gradients, for every kind of routing."""

import pytest
import torch
from tests.ops.test_registry import (
    DERIVED,
    WRITING,
    check_narrow_gradients,
    copied,
    labelled,
    require_all,
    tuple_of,
    widened,
    written,
)

from weft.graph.opset import OPS
from weft.ops.precision import add_product
from weft.ops.registry import reference_bodies
from weft.testing.case import cases
from weft.testing.tolerance import gradient_bound, relative_bound, require_close

pytest.importorskip("triton", reason="Triton is built for Linux alone")

from weft.kernels.triton import loss
from weft.kernels.triton.table import triton_bodies

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16] if DEVICE == "cuda" else [torch.float32]
NAMES = {name.partition(".")[0] for name in triton_bodies()}
OPERATORS = [op for op in OPS.values() if op.name in NAMES]
GRADIENTS = [op for op in DERIVED if op.name in NAMES and not op.fused_backward]


@pytest.fixture(autouse=True, scope="module")
def _what_an_interpreter_lacks():
    """A CPU has no product of a wider dtype."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
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


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "label"), labelled(OPERATORS))
def test_two_runs_give_the_same_bits(op, label):
    case = cases(op.name, torch.bfloat16, DEVICE)[label]
    first, second = (tuple_of(bodies()[op.name](*copied(case), **case.attrs)) for _ in range(2))
    assert all(
        torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(first, second, strict=True)
    )


# the interpreter has no addition by the copy engine, and takes the small tiles that need none
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "label"), labelled([op for op in WRITING if op.name in NAMES]))
def test_first_gradients_have_the_bits_of_those_added_to_zeros(op, label, dtype):
    bodies = {**reference_bodies(), **triton_bodies()}
    found, expected = written(op, bodies, cases(op.name, dtype, DEVICE)[label])
    assert torch.equal(found, expected)

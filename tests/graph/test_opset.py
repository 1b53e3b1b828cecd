import pytest

from weft.errors import ProgramError
from weft.graph.dims import Sizes
from weft.graph.opset import OPS, Lane, Op, body_names, lookup

EVERY_OP = pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
ONES = Sizes(numbers=dict.fromkeys("BSNTDVCHGJKQAPMXYElLkUORFWZzyIportu", 2), bounds={})


def port_names(op: Op) -> set[str]:
    return {p.name for p in (*op.inputs, *op.outputs)}


def test_an_unknown_operator_is_named():
    with pytest.raises(ProgramError, match="'conv2d'.*opset"):
        lookup("conv2d")


def test_bodies_are_listed_once():
    names = body_names()
    assert len(names) == len(set(names))
    assert "expert_up.wgrad" in names
    assert "cross_entropy.fused" in names
    assert "all_to_all.dgrad" not in names, "a collective's gradient is its adjoint"


@EVERY_OP
def test_what_a_gradient_reads_is_a_port(op: Op):
    assert {*(op.dgrad or ()), *(op.wgrad or ())} <= port_names(op)


@EVERY_OP
def test_port_names_are_unique(op: Op):
    assert len(port_names(op)) == len(op.inputs) + len(op.outputs)


@EVERY_OP
def test_shortcuts_pair_differentiable_ports(op: Op):
    inputs = {p.name for p in op.differentiable_inputs}
    outputs = {p.name for p in op.differentiable_outputs}
    assert {name for pair in op.same_grad for name in pair} <= inputs
    assert all(i in inputs and o in outputs for i, o in op.passes_grad)


@EVERY_OP
def test_an_adjoint_of_an_adjoint_is_the_operator(op: Op):
    if op.adjoint is not None:
        assert lookup(op.adjoint).adjoint == op.name


@EVERY_OP
def test_every_differentiable_input_has_a_way_back(op: Op):
    if op.differentiable_inputs and op.differentiable_outputs:
        assert op.dgrad is not None or op.adjoint or op.passes_grad or op.fused_backward


@EVERY_OP
def test_what_writes_its_gradient_can_add_it(op: Op):
    assert not op.writes or (op.wgrad is not None and len(op.weights) == 1)
    assert (f"{op.name}.wgrad_first" in body_names()) is op.writes


@EVERY_OP
def test_every_weight_has_a_gradient(op: Op):
    assert not op.weights or op.wgrad is not None or op.fused_backward


@EVERY_OP
def test_collectives_and_nothing_else_have_a_wire(op: Op):
    assert (op.lane is Lane.COMM) == (op.wire is not None)


@EVERY_OP
def test_work_is_a_number(op: Op):
    assert op.flops(ONES) >= 0

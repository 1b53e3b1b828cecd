"""A fused operator says what its parts say: ports, work, and where it stands in a backward."""

from dataclasses import replace

import pytest

from weft.errors import ProgramError
from weft.graph.dims import Sizes
from weft.graph.fused import COPIES, FUSED, lookup, signature
from weft.graph.opset import FIRST, OPS, Lane, body_names

NUMBERS = Sizes(numbers={"T": 5, "R": 10, "D": 3, "F": 7, "L": 2, "k": 2}, bounds={})
EVERY = pytest.mark.parametrize("fused", FUSED.values(), ids=lambda one: one.body)


def test_an_operator_is_of_the_vocabulary_or_fused():
    assert lookup("swiglu") is OPS["swiglu"]
    assert lookup("permute_up_swiglu") is FUSED["permute_up_swiglu"].op
    with pytest.raises(ProgramError, match="'conv2d'.*opset"):
        lookup("conv2d")


def test_no_fused_operator_takes_a_name_of_the_vocabulary():
    assert {one.op.name for one in FUSED.values()}.isdisjoint(OPS)
    bodies = {one.op.name: one.body for one in FUSED.values() if not one.body.endswith(FIRST)}
    assert len(bodies) == len(FUSED) - sum(one.endswith(FIRST) for one in FUSED)


@EVERY
def test_parts_are_bodies_of_the_vocabulary_with_its_ports(fused):
    for part in fused.parts:
        assert part.body in body_names()
        takes, returns = signature(part.body)
        assert (len(part.inputs), len(part.outputs)) == (len(takes), len(returns))


@EVERY
def test_a_value_is_made_before_it_is_read_and_given_by_a_part(fused):
    known = set(fused.reads)
    for part in fused.parts:
        assert known.issuperset(part.inputs)
        assert known.isdisjoint(part.outputs)
        known |= set(part.outputs)
    assert set(fused.gives) <= known - set(fused.reads)


@EVERY
def test_something_is_hidden_or_one_launch_saved(fused):
    made = {name for part in fused.parts for name in part.outputs}
    assert len(fused.parts) > 1
    assert made >= set(fused.gives)


@EVERY
def test_work_is_that_of_the_parts(fused):
    each = [OPS[part.body.partition(".")[0]].flops(NUMBERS) for part in fused.parts]
    assert fused.op.flops(NUMBERS) == sum(each)
    assert fused.op.lane is Lane.COMPUTE


@EVERY
def test_a_port_that_two_parts_share_has_one_shape(fused):
    shapes: dict[str, set[tuple[str, str]]] = {}
    for part in fused.parts:
        takes, returns = signature(part.body)
        for names, ports in ((part.inputs, takes), (part.outputs, returns)):
            for name, port in zip(names, ports, strict=True):
                shapes.setdefault(name, set()).add((port.dims, port.kind))
    assert all(len(found) == 1 for found in shapes.values()), shapes


def test_a_weight_gradient_that_writes_is_the_one_that_adds_but_for_its_last_part():
    adding = {name for name in FUSED if name.endswith(".wgrad")}
    assert {name for name in FUSED if name.endswith(FIRST)} == {f"{n}_first" for n in adding}
    for name in adding:
        one, other = FUSED[name], FUSED[f"{name}_first"]
        assert (other.op, other.parts[:-1]) == (one.op, one.parts[:-1])
        assert other.parts[-1] == replace(one.parts[-1], body=f"{one.parts[-1].body}_first")


def test_copies_are_moves_of_rows():
    assert set(body_names()) >= COPIES
    assert {"permute", "reorder"} <= COPIES


def test_the_ports_of_gradients_are_those_of_the_derivation():
    takes, returns = signature("expert_up.wgrad")
    assert [(p.name, p.kind) for p in takes] == [
        ("w", "acc"), ("u", "act"), ("rows", "act"), ("ends", "i32"),
    ]  # fmt: skip
    assert [(p.name, p.kind) for p in returns] == [("w", "acc")]
    assert [p.name for p in signature("add_rms_norm.dgrad")[1]] == ["x"], "r has the same gradient"

"""Every body of the vocabulary: present, and its derived gradients those of torch's autograd
through its forward.
"""

from functools import cached_property

import pytest
import torch

from weft.errors import VerificationError
from weft.graph.opset import OPS, Lane, Op, Tolerance, body_names
from weft.ops.registry import cpu_bodies, cuda_bodies, reference_bodies
from weft.testing.case import Case, cases
from weft.testing.tolerance import gradient_bound, relative_bound, require_close

LOCAL = [op for op in OPS.values() if op.lane is not Lane.COMM]
DERIVED = [op for op in LOCAL if op.dgrad is not None or op.wgrad is not None]
TABLES = {"reference": reference_bodies(), "cpu": {**reference_bodies(), **cpu_bodies()}}


def labelled(ops):
    return [
        pytest.param(op, label, id=f"{op.name}-{label}")
        for op in ops
        for label in cases(op.name, torch.float64)
    ]


def tuple_of(result):
    return result if isinstance(result, tuple) else (result,)


def copied(case: Case) -> list:
    return [x.clone() if isinstance(x, torch.Tensor) else x for x in case.inputs]


def differentiable(op: Op) -> list[int]:
    return [i for i, port in enumerate(op.inputs) if port.weight or port.differentiable]


class Derivation:
    """One forward under autograd: its named values, the gradients put in, and those that autograd
    found.
    """

    def __init__(self, op: Op, bodies, case: Case):
        self.op, self.bodies, self.case = op, bodies, case
        inputs = copied(case)
        leaves = differentiable(op)
        for i in leaves:
            inputs[i].requires_grad_()
        outputs = tuple_of(bodies[op.name](*inputs, **case.attrs))
        self.outputs = [x.detach() for x in outputs]
        if op.is_loss:
            self.given, total = [], [outputs[0].sum()]
            seeds = None
        else:
            total = [x for x, port in zip(outputs, op.outputs, strict=True) if port.differentiable]
            generator = torch.Generator().manual_seed(1)
            seeds = self.given = [
                torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in total
            ]
        self._graph = total, {op.inputs[i].name: inputs[i] for i in leaves}, seeds
        names = [p.name for p in (*op.inputs, *op.outputs)]
        self.value = dict(zip(names, [*copied(case), *self.outputs], strict=True))

    @cached_property
    def gradient(self):
        total, leaves, seeds = self._graph
        found = torch.autograd.grad(
            total, list(leaves.values()), seeds, allow_unused=True, materialize_grads=True
        )
        return dict(zip(leaves, found, strict=True))

    def expected_inputs(self):
        shared = {pair[0] for pair in (*self.op.same_grad, *self.op.passes_grad)}
        ports = [p.name for p in self.op.differentiable_inputs if p.name not in shared]
        return [self.gradient[name] for name in ports]

    def derived_inputs(self, **changed):
        value = {**self.value, **changed}
        saved = [value[name] for name in self.op.dgrad]
        body = self.bodies[f"{self.op.name}.dgrad"]
        return tuple_of(body(*self.given, *saved, **self.case.attrs))

    def accumulators(self):
        weights = [self.value[p.name] for p in self.op.weights]
        return [
            torch.full_like(w, 0.5, dtype=torch.promote_types(w.dtype, torch.float32))
            for w in weights
        ]

    def derived_weights(self, accs, **changed):
        value = {**self.value, **changed}
        saved = [value[name] for name in self.op.wgrad]
        body = self.bodies[f"{self.op.name}.wgrad"]
        return tuple_of(body(*accs, *self.given, *saved, **self.case.attrs))


def require_all(found, expected, bound, name):
    assert len(found) == len(expected), f"{name}: {len(found)=} {len(expected)=}"
    for i, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
        require_close(actual, wanted, bound, f"{name} {i}")


def check_gradients(op, bodies, case, dtype=torch.float64):
    derivation = Derivation(op, bodies, case)
    bound = gradient_bound(op.tolerance, dtype, case.length)
    if op.dgrad is not None:
        require_all(
            derivation.derived_inputs(), derivation.expected_inputs(), bound, f"{op.name}.dgrad"
        )
    if op.wgrad is not None:
        accs = derivation.accumulators()
        expected = [
            acc + derivation.gradient[p.name] for acc, p in zip(accs, op.weights, strict=True)
        ]
        found = derivation.derived_weights(accs)
        assert all(a is b for a, b in zip(found, accs, strict=True)), "not accumulated in place"
        require_all(found, expected, bound, f"{op.name}.wgrad")


def test_reference_bodies_are_the_vocabulary_without_its_collectives():
    collectives = {op.name for op in OPS.values() if op.lane is Lane.COMM}
    wanted = {name for name in body_names() if name.split(".")[0] not in collectives}
    assert set(reference_bodies()) == wanted


def test_faster_bodies_replace_only_what_the_reference_has():
    assert set(cpu_bodies()) | set(cuda_bodies()) <= set(reference_bodies())


def test_every_local_operator_has_cases():
    assert all(cases(op.name, torch.float64) for op in LOCAL)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("op", "label"), labelled(DERIVED))
def test_derived_gradients_are_those_of_autograd(op, label, table):
    check_gradients(op, TABLES[table], cases(op.name, torch.float64)[label])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("op", "label"), labelled(DERIVED))
def test_narrow_gradients_agree_with_float64(op, label, table, dtype):
    check_narrow_gradients(op, TABLES[table], cases(op.name, dtype)[label], dtype)


def check_narrow_gradients(op, bodies, case, dtype):
    """The same operands, rounded to the narrow dtype, through the reference in float64."""
    narrow = Derivation(op, bodies, case)
    wide = Derivation(op, reference_bodies(), widened(case))
    wide.given = [x.double() for x in narrow.given]
    bound = gradient_bound(op.tolerance, dtype, case.length)
    if op.dgrad is not None:
        found = narrow.derived_inputs()
        require_all(found, wide.derived_inputs(), bound, f"{op.name}.dgrad")
        kinds = {"act": dtype, "acc": torch.float32}
        passed = [port for port, _ in op.passes_grad]
        ports = [p for p in op.differentiable_inputs if p.name not in passed]
        wanted = [kinds[p.kind] for p in ports][: len(found)]
        assert [x.dtype for x in found] == wanted
    if op.wgrad is not None:
        found = narrow.derived_weights(narrow.accumulators())
        assert all(acc.dtype == torch.float32 for acc in found)
        require_all(found, wide.derived_weights(wide.accumulators()), bound, f"{op.name}.wgrad")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("op", "label"), labelled(LOCAL))
def test_narrow_outputs_agree_with_float64_and_have_the_dtype_of_their_port(
    op, label, table, dtype
):
    case = cases(op.name, dtype)[label]
    attrs = {**case.attrs, "dtype": "float64"} if "dtype" in case.attrs else case.attrs
    found = tuple_of(TABLES[table][op.name](*copied(case), **case.attrs))
    wide = tuple_of(reference_bodies()[op.name](*widened(case).inputs, **attrs))
    kinds = {
        "act": dtype,
        "acc": torch.float32,
        "i64": torch.int64,
        "i32": torch.int32,
        "u8": torch.uint8,
    }
    kinds["bf16"] = torch.bfloat16
    if op.lane is Lane.HOST:  # of several at once there are more than ports
        assert found == wide
        return
    for actual, expected, port in zip(found, wide, op.outputs, strict=True):
        assert actual.dtype == kinds[port.kind], port.name
        rounded = torch.bfloat16 if port.kind == "bf16" else dtype
        bound = relative_bound(op.tolerance, rounded, case.length)
        if op.name == "rope_table":  # an angle of 4095 radians is itself rounded to 4096 eps
            bound = 4096 * torch.finfo(torch.float32).eps
        if op.name == "decide":  # exact between bodies of one dtype, rounded between two
            bound = relative_bound(Tolerance.ELEMENTWISE, torch.float32)
        if torch.isfinite(expected).all():
            require_close(actual, expected, bound, f"{op.name} {port.name}")


WRITING = [op for op in LOCAL if op.writes]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def written(op, bodies, case):
    """What the first of a step makes of what is no number, and the others of zeros."""
    derivation = Derivation(op, bodies, case)
    operands = [*derivation.given, *(derivation.value[name] for name in op.wgrad)]
    (acc,) = derivation.accumulators()
    nothing, zeros = torch.full_like(acc, torch.nan), torch.zeros_like(acc)
    found = bodies[f"{op.name}.wgrad_first"](nothing, *operands, **case.attrs)
    assert found is nothing, "not written in place"
    return found, bodies[f"{op.name}.wgrad"](zeros, *operands, **case.attrs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("op", "label"), labelled(WRITING))
def test_a_first_gradient_has_the_bits_of_one_added_to_zeros(op, label, table, dtype):
    found, expected = written(op, TABLES[table], cases(op.name, dtype)[label])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("op", WRITING, ids=lambda op: op.name)
def test_a_first_gradient_that_is_added_is_caught(op):
    """Sabotage: a body that adds where it should write keeps what is no number."""
    bodies = reference_bodies()
    careless = {**bodies, f"{op.name}.wgrad_first": bodies[f"{op.name}.wgrad"]}
    label = next(iter(cases(op.name, torch.float64)))
    found, expected = written(op, careless, cases(op.name, torch.float64)[label])
    assert not torch.equal(found, expected)


FUSED = [op for op in LOCAL if op.fused_backward]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("op", "label"), labelled(FUSED))
def test_fused_losses_give_the_loss_and_the_gradients_of_autograd(op, label, table):
    case = cases(op.name, torch.float64)[label]
    derivation = Derivation(op, TABLES[table], case)
    accs = derivation.accumulators()
    expected = [acc + derivation.gradient[p.name] for acc, p in zip(accs, op.weights, strict=True)]
    found = TABLES[table][f"{op.name}.fused"](*copied(case), *accs, **case.attrs)
    wanted = [*derivation.outputs, *derivation.expected_inputs(), *expected]
    assert all(a is b for a, b in zip(found[-len(accs) :], accs, strict=True))
    require_all(found, wanted, gradient_bound(op.tolerance, torch.float64), op.name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("op", "label"), labelled(FUSED))
def test_narrow_fused_losses_agree_with_float64(op, label, dtype):
    case = cases(op.name, dtype)[label]
    body = reference_bodies()[f"{op.name}.fused"]
    results = []
    for operands in (copied(case), list(widened(case).inputs)):
        accs = [torch.zeros_like(operands[i], dtype=torch.promote_types(operands[i].dtype,
        torch.float32))
                for i, port in enumerate(op.inputs) if port.weight]  # fmt: skip
        results.append(body(*operands, *accs, **case.attrs))
    require_all(*results, gradient_bound(op.tolerance, dtype, case.length), op.name)


def widened(case: Case) -> Case:
    inputs = tuple(
        x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in copied(case)
    )
    return Case(inputs=inputs, attrs=case.attrs, length=case.length)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("op", "label"), labelled(LOCAL))
def test_bodies_leave_their_inputs_alone(op, label, table):
    """All but accumulators and optimizer state; a value is changed if its bits are."""
    mine = {
        "losses", "loss", "tally", "norm2", "master", "mean", "square", "own", "grad",
        "biases", "past", "total",
    }  # fmt: skip
    case = cases(op.name, torch.float64)[label]
    inputs = copied(case)
    TABLES[table][op.name](*inputs, **case.attrs)
    more = (op.inputs[-1],) * (len(inputs) - len(op.inputs))  # chunks beyond the first
    for port, after, before in zip((*op.inputs, *more), inputs, case.inputs, strict=True):
        if isinstance(before, torch.Tensor) and port.name not in mine:
            assert torch.equal(after.nan_to_num(7), before.nan_to_num(7)), port.name


@pytest.mark.parametrize(("op", "label"), labelled(DERIVED))
def test_gradient_bodies_leave_their_operands_alone(op, label):
    derivation = Derivation(op, TABLES["cpu"], cases(op.name, torch.float64)[label])
    before = {k: v.clone() for k, v in derivation.value.items() if isinstance(v, torch.Tensor)}
    given = [x.clone() for x in derivation.given]
    if op.dgrad is not None:
        derivation.derived_inputs()
    if op.wgrad is not None:
        derivation.derived_weights(derivation.accumulators())
    assert all(torch.equal(derivation.value[k], v) for k, v in before.items())
    assert all(torch.equal(a, b) for a, b in zip(derivation.given, given, strict=True))


@pytest.mark.parametrize("name", ["expert_up", "expert_down"])
def test_swapped_experts_are_caught(name):
    """Sabotage: the ends of another routing send rows to the wrong expert, and the same comparison
    must fail.
    """
    op, case = OPS[name], cases(name, torch.float64)["uneven"]
    derivation = Derivation(op, reference_bodies(), case)
    swapped = torch.tensor([9, 12, 13, 18], dtype=torch.int32)
    bound = gradient_bound(op.tolerance, torch.float64)
    with pytest.raises(VerificationError):
        require_all(
            derivation.derived_inputs(ends=swapped), derivation.expected_inputs(), bound, name
        )


@pytest.mark.parametrize("name", ["permute", "permute_weights"])
def test_two_swapped_rows_are_caught(name):
    op, case = OPS[name], cases(name, torch.float64)["random"]
    derivation = Derivation(op, reference_bodies(), case)
    slots = derivation.value["slot_row"].clone()
    slots[0, 0], slots[1, 0] = slots[1, 0].item(), slots[0, 0].item()
    bound = gradient_bound(op.tolerance, torch.float64)
    with pytest.raises(VerificationError):
        require_all(
            derivation.derived_inputs(slot_row=slots), derivation.expected_inputs(), bound, name
        )


ON_GPUS = [op for op in LOCAL if any(name.split(".")[0] == op.name for name in cuda_bodies())]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs one CUDA device")
@pytest.mark.parametrize(("op", "label"), labelled(ON_GPUS))
def test_bodies_for_gpus_agree_with_float64(op, label):
    bodies = {**reference_bodies(), **cuda_bodies()}
    case = cases(op.name, torch.bfloat16, "cuda")[label]
    check_narrow_gradients(op, bodies, case, torch.bfloat16)
    bound = relative_bound(op.tolerance, torch.bfloat16, case.length)
    found = tuple_of(bodies[op.name](*copied(case), **case.attrs))
    wanted = tuple_of(reference_bodies()[op.name](*widened(case).inputs, **case.attrs))
    require_close(found[0], wanted[0], bound, op.name)  # a kernel keeps its log-sum-exp its own way


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs one CUDA device")
@pytest.mark.parametrize(("op", "label"), labelled(WRITING))
def test_first_gradients_on_gpus_have_the_bits_of_those_added_to_zeros(op, label):
    bodies = {**reference_bodies(), **cuda_bodies()}
    found, expected = written(op, bodies, cases(op.name, torch.bfloat16, "cuda")[label])
    assert torch.equal(found, expected)

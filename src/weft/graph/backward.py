"""The derived backward: for each forward task an input-gradient task and a weight-gradient task.

The forward is walked from its end. A value read by several tasks gets its gradients added by
explicit `add` tasks in the order in which the walk meets them, so the sum has one order in every
schedule. Weight gradients accumulate: `acc.<weight>` goes in, its successor comes out, and a weight
used twice makes a chain of two.

A loss that computes its gradient in the same pass (`fused_backward`) replaces its own forward task.
"""

from dataclasses import dataclass, replace

from weft.errors import ProgramError
from weft.graph.opset import Op, Port
from weft.graph.program import Program, Task, Value, verify
from weft.graph.record import Recorder


@dataclass(frozen=True, kw_only=True, slots=True)
class Differentiated:
    """A forward that keeps what its backward reads, and that backward."""

    forward: Program
    backward: Program


def differentiate(forward: Program) -> Differentiated:
    """Derives the backward of a recorded forward.

    Inputs of the backward: `d.<output>` for each differentiable output, saved values, weights, and
    `acc.<weight>`. Outputs: `d.<input>` for each differentiable input that gets a gradient, and the
    last value of each accumulator.
    """
    walk = _Walk(forward)
    for task in reversed(forward.tasks):
        walk.visit(task)
    return walk.finish()


class _Walk:
    """One derivation: gradients collected so far, accumulators, and the forward tasks after fusing
    losses.
    """

    def __init__(self, forward: Program) -> None:
        self.forward = forward
        self.out = Recorder(forward.name.replace("forward", "backward"))
        self.grads: dict[str, list[Value]] = {}
        self.accs: dict[str, Value] = {}
        self.tasks: dict[str, Task] = {task.name: task for task in forward.tasks}
        self.fused: dict[str, Value] = {}
        self.read: list[str] = []
        for name in forward.outputs:
            value = forward.values[name]
            if value.kind == "act" and self._depends_on_differentiable(name):
                self.grads[name] = [self.out.input(f"d.{name}", value.dims, value.kind)]

    def _depends_on_differentiable(self, name: str) -> bool:
        maker = self.forward.producer().get(name)
        if maker is None:
            return False
        port = maker.op.outputs[maker.outputs.index(name)]
        return port.differentiable and bool(maker.op.differentiable_inputs or maker.op.weights)

    def visit(self, task: Task) -> None:
        op = task.op
        if op.fused_backward:
            self._fuse(task)
            return
        upstream = self._upstream(task, op)
        if upstream is None:
            return
        for port, source in op.passes_grad:
            self._give(
                self._input_of(task, port), upstream[_index(op.differentiable_outputs, source)]
            )
        if op.adjoint is not None:
            self._adjoint(task, upstream)
        if op.dgrad is not None:
            self._dgrad(task, upstream)
        if op.wgrad is not None:
            self._wgrad(task, upstream)

    def _upstream(self, task: Task, op: Op) -> list[Value] | None:
        if op.is_loss:
            return []
        names = [n for n, p in zip(task.outputs, op.outputs, strict=True) if p.differentiable]
        have = [name for name in names if name in self.grads]
        if not have:
            return None
        if len(have) != len(names):
            raise ProgramError(f"{task.name}: only {have} of {names} receive a gradient")
        return [self._total(name) for name in names]

    def _total(self, name: str) -> Value:
        first, *rest = self.grads[name]
        total = first
        for other in rest:
            grad = self.out.name_value(f"d.{name}", total.dims, total.kind)
            self.out.emit("add", (total.name, other.name), (grad,), {}, {})
            total = grad
        self.grads[name] = [total]
        return total

    def _adjoint(self, task: Task, upstream: list[Value]) -> None:
        op = task.op
        source = self.forward.values[task.inputs[0]]
        grad = self.out.name_value(f"d.{source.name}", source.dims, source.kind)
        extra = tuple(self._saved(task, p.name) for p in op.inputs if not p.differentiable)
        attributes = dict(task.attributes)
        if "reverse" in attributes:
            attributes["reverse"] = not attributes["reverse"]
        assert op.adjoint is not None
        self.out.emit(op.adjoint, (upstream[0].name, *extra), (grad,), attributes, task.renames)
        self._give(source.name, grad)

    def _dgrad(self, task: Task, upstream: list[Value]) -> None:
        op = task.op
        assert op.dgrad is not None
        shared = dict(op.same_grad)
        passed = [port for port, _ in op.passes_grad]
        wanted = [p for p in op.differentiable_inputs if p.name not in passed]
        targets = [p for p in wanted if p.name not in shared]
        outputs = tuple(self._grad_value(task, p) for p in targets)
        saved = tuple(self._saved(task, name) for name in op.dgrad)
        names = tuple(g.name for g in upstream) + saved
        self.out.emit(f"{op.name}.dgrad", names, outputs, task.attributes, task.renames)
        made = {p.name: g for p, g in zip(targets, outputs, strict=True)}
        for port in wanted:
            self._give(self._input_of(task, port.name), made[shared.get(port.name, port.name)])

    def _grad_value(self, task: Task, port: Port) -> Value:
        source = self.forward.values[self._input_of(task, port.name)]
        return self.out.name_value(f"d.{source.name}", source.dims, source.kind)

    def _wgrad(self, task: Task, upstream: list[Value]) -> None:
        op = task.op
        assert op.wgrad is not None
        weights = [self._input_of(task, p.name) for p in op.weights]
        before = [self._acc(self.out, w) for w in weights]
        after = tuple(self.out.name_value(a.name.rstrip("'") + "'", a.dims, a.kind) for a in before)
        saved = tuple(self._saved(task, name) for name in op.wgrad)
        names = tuple(a.name for a in before) + tuple(g.name for g in upstream) + saved
        self.out.emit(f"{op.name}.wgrad", names, after, task.attributes, task.renames)
        self.accs.update(zip(weights, after, strict=True))

    def _acc(self, recorder: Recorder, weight: str) -> Value:
        if weight in self.accs:
            return self.accs[weight]
        return recorder.input(f"acc.{weight}", self.forward.values[weight].dims, "acc")

    def _fuse(self, task: Task) -> None:
        """Replaces a loss by its one-pass form, which also gives the input gradient and the weight
        gradient.
        """
        op = task.op
        weights = [self._input_of(task, p.name) for p in op.weights]
        assert not set(weights) & set(self.accs), f"{weights=} are used behind their loss"
        dims = self.forward.values
        accs = [Value(name=f"acc.{w}", dims=dims[w].dims, kind="acc") for w in weights]
        after = [replace(a, name=a.name + "'") for a in accs]
        sources = [self._input_of(task, p.name) for p in op.differentiable_inputs]
        grads = [Value(name=f"d.{s}", dims=dims[s].dims, kind=dims[s].kind) for s in sources]
        self.tasks[task.name] = replace(
            task,
            body=f"{op.name}.fused",
            inputs=(*task.inputs, *(a.name for a in accs)),
            outputs=(*task.outputs, *(g.name for g in grads), *(a.name for a in after)),
        )
        self.fused.update({v.name: v for v in (*accs, *grads, *after)})
        for source, grad in zip(sources, grads, strict=True):
            self._give(source, self.out.input(grad.name, grad.dims, grad.kind))

    def _saved(self, task: Task, port: str) -> str:
        """The forward value behind a saved port; on first use an input of the backward."""
        names = {p.name: n for p, n in zip(task.op.inputs, task.inputs, strict=True)}
        names |= {p.name: n for p, n in zip(task.op.outputs, task.outputs, strict=True)}
        name = names[port]
        if name not in self.out.values:
            value = self.forward.values[name]
            self.out.input(name, value.dims, value.kind)
            self.read.append(name)
        return name

    def _input_of(self, task: Task, port: str) -> str:
        return task.inputs[_index(task.op.inputs, port)]

    def _give(self, name: str, grad: Value) -> None:
        self.grads.setdefault(name, []).append(grad)

    def finish(self) -> Differentiated:
        forward = self.forward
        grads = [
            self._total(name)
            for name in forward.inputs
            if name in self.grads and not name.startswith("w.")
        ]
        backward = self.out.finish(*grads, *self.accs.values())
        fused_accs = tuple(
            v.name for v in self.fused.values() if v.name.startswith("acc.") and v.name[-1] != "'"
        )
        fused_outs = tuple(v.name for v in self.fused.values() if v.name not in fused_accs)
        made = forward.producer()
        keeping = replace(
            forward,
            values={**forward.values, **self.fused},
            inputs=(*forward.inputs, *fused_accs),
            outputs=(*forward.outputs, *fused_outs),
            tasks=tuple(self.tasks[task.name] for task in forward.tasks),
            kept=tuple(n for n in self.read if n in made),
        )
        return Differentiated(forward=verify(keeping), backward=backward)


def _index(ports: tuple[Port, ...], name: str) -> int:
    return next(i for i, p in enumerate(ports) if p.name == name)

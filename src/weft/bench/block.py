"""Half a layer by itself: the experts from routing to combination, or attention with its norms.

The block is cut out of the very program of the recipe's layer, differentiated again, and run
serially on random hidden states by the bodies that training takes, fused where the plan fuses, and
without the values that its recipe names to be made again (policies are those of whole layers).
FLOPs are those of its products and of attention, a fused one counted as its parts; what it keeps
for its backward is counted from the tensors themselves. A backward that can write its weight
gradients is run both ways: adding, and writing as the first micro-batch of a step does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from weft.bench.ceilings import Ceilings
from weft.bench.floor import floor_ms
from weft.bench.profile import hold, is_product, widths
from weft.bench.rig import Rig
from weft.bench.spread import Spread, spread
from weft.compose import segment
from weft.compose.first import writing
from weft.compose.instance import is_static, static_key
from weft.compose.plan import Plan, sizes
from weft.compose.price import flops
from weft.compose.templates import layer_weights
from weft.errors import ConfigError
from weft.graph.backward import Differentiated, differentiate
from weft.graph.dims import Sizes
from weft.graph.program import Program, Task, verify
from weft.model.families import Kind
from weft.runtime.executor import bind_template
from weft.runtime.stage import lanes_of
from weft.runtime.state import precision
from weft.runtime.wire import collective_bodies
from weft.schedule.action import Ordered
from weft.schedule.fuse import fuse
from weft.schedule.layer import serial
from weft.schedule.remat import recipes, rematerialise
from weft.trainer.record import Stopwatch

BLOCKS = ("attention", "moe-layer")
WARM_UP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One direction of a block: its time, its FLOPs, and the least its products can take."""

    ms: Spread
    flops: int
    floor_ms: float

    @property
    def tflops(self) -> float:
        return self.flops / self.ms.median / 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A block of one layer: both directions, the backward that writes where it is another, and the
    bytes that wait for the backward.
    """

    block: str
    tokens: int
    forward: Pass
    backward: Pass
    first: Pass | None
    kept: Mapping[str, int]

    @property
    def kept_bytes(self) -> int:
        return sum(self.kept.values())


def cut(program: Program, block: str) -> Differentiated:
    """The block of a layer's forward: what ends with the second norm, or what follows it."""
    norm = next(i for i, task in enumerate(program.tasks) if task.op.name == "add_rms_norm")
    attention, experts = program.tasks[: norm + 1], program.tasks[norm + 1 : -1]
    return differentiate(_alone(program, attention if block == "attention" else experts, block))


def planned(plain: Differentiated, plan: Plan) -> Differentiated:
    """The block as a plan has it: some values made again, by its fused operators."""
    again = recipes(plain.forward).keys() & named(plan.remat)
    return fuse(rematerialise(plain, again), plan.fuses)


def named(remat: str | tuple[str, ...]) -> frozenset[str]:
    """The values that a recipe has made again, by name.

    Raises:
        ConfigError: it has a policy, which is a layer's.
    """
    if isinstance(remat, tuple):
        return frozenset(remat)
    if remat == "none":
        return frozenset()
    raise ConfigError(
        f"overlap.remat = {remat!r}: found a policy, which chooses among the values of a whole "
        "layer; expected 'none' or names of values; try overlap.remat=[\"logits\"]"
    )


def _alone(program: Program, tasks: Sequence[Task], name: str) -> Program:
    """Some tasks as a program: what they read from others goes in, what others read comes out."""
    made = [value for task in tasks for value in task.outputs]
    read = dict.fromkeys(value for task in tasks for value in task.inputs)
    beyond = [task for task in program.tasks if task not in tasks]
    wanted = {value for task in beyond for value in task.inputs} | set(program.outputs)
    mentioned = {*made, *read}
    return verify(
        replace(
            program,
            name=f"{name}.forward",
            values={k: v for k, v in program.values.items() if k in mentioned},
            inputs=tuple(value for value in read if value not in made),
            outputs=tuple(value for value in made if value in wanted),
            tasks=tuple(tasks),
            kept=(),
        )
    )


def measure(rig: Rig, block: str, ceilings: Ceilings, *, repeats: int) -> Measured:
    """Times a block of the first layer with experts; its forward and its backwards in turn."""
    layer, program = _layer(rig)
    plain = cut(program, block)
    parts = planned(plain, rig.plan)
    draw = _Draw(rig, layer)
    forward, *backwards = (_Runner(rig, one, draw) for one in _ways(parts))
    ahead: list[Stopwatch] = []
    back: list[list[Stopwatch]] = [[] for _ in backwards]
    given = dict(forward.inputs)
    for _ in range(WARM_UP + repeats):
        for backward, watches in zip(backwards, back, strict=True):
            rig.transport.barrier()
            hold(rig.place.device)  # the host runs ahead, as it does in a step
            took, results = forward.run(given)
            ahead.append(took)
            took, _ = backward.run({**given, **results, **backward.inputs})
            watches.append(took)
    _, results = forward.run(given)
    passes = [
        _pass(watches[WARM_UP:], ordered.program, rig, ceilings)
        for ordered, watches in zip(_ways(plain)[1:], back, strict=True)
    ]
    return Measured(
        block=block,
        tokens=rig.plan.tokens // rig.plan.layout.sp,
        forward=_pass(ahead[WARM_UP * len(back) :], plain.forward, rig, ceilings),
        backward=passes[0],
        first=passes[1] if len(passes) > 1 else None,
        kept=_kept(parts, given, results),
    )


def _ways(parts: Differentiated) -> tuple[Ordered, ...]:
    """The forward, the backward, and the one that writes its gradients where some can be."""
    adding = serial(parts.backward)
    first = writing(adding, adding.program.name)
    others = () if first == adding else (first,)
    return (serial(parts.forward), adding, *others)


def _layer(rig: Rig) -> tuple[str, Program]:
    """The first layer with experts, and its forward before anything is fused."""
    shape = rig.plan.shape
    kind, i = next((shape.kind(i), i) for i in range(shape.layers) if shape.kind(i) != Kind.DENSE)
    weights = layer_weights(rig.stage.step.parameters)[kind]
    return f"layers.{i}", segment.layer(rig.plan, kind, weights, evaluate=True).forward


def _kept(
    parts: Differentiated, given: Mapping[str, Any], results: Mapping[str, Any]
) -> Mapping[str, int]:
    """Bytes of each activation that the backward reads, once for those that share memory."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    for name in parts.backward.inputs:
        value = results.get(name, given.get(name))
        if is_static(name) or not isinstance(value, Tensor):
            continue
        storage = value.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            found[name] = value.nbytes
    return found


def _pass(watches: Sequence[Stopwatch], program: Program, rig: Rig, ceilings: Ceilings) -> Pass:
    n, bytes_of = sizes(rig.plan), widths(rig.plan.precision)
    products = [task for task in program.tasks if is_product(task.body)]
    return Pass(
        ms=spread([watch.milliseconds() for watch in watches]),
        flops=sum(flops(task, n) for task in products),
        floor_ms=sum(floor_ms(task, program, n, bytes_of, ceilings) for task in products),
    )


class _Draw:
    """What a program reads: the state of its layer, the rig's documents, random hidden states."""

    def __init__(self, rig: Rig, layer: str) -> None:
        self.rig, self.layer = rig, layer
        self.n: Sizes = sizes(rig.plan)
        self.environment = rig.environment()
        self.generator = torch.Generator(rig.place.device).manual_seed(0)

    def __call__(self, program: Program, name: str) -> Any:
        if is_static(name):
            return self.rig.stage.state.statics[static_key(name, self.layer)]
        if f"m0.{name}" in self.environment:
            return self.environment[f"m0.{name}"]
        value, dtypes = program.values[name], precision(self.rig.plan.precision)
        dtype = dtypes.acc if value.kind == "acc" else dtypes.act
        shape = self.n.shape(value.dims)
        device = self.rig.place.device
        return torch.randn(shape, device=device, dtype=dtype, generator=self.generator)


class _Runner:
    """A program bound by itself, and what it reads besides a forward's results."""

    def __init__(self, rig: Rig, ordered: Ordered, draw: _Draw) -> None:
        device = rig.place.device
        self.device = device
        self.program = ordered.program
        lanes = lanes_of(device, rig.transport)
        bodies = {**rig.bodies, **collective_bodies(rig.transport)}
        self.bound = bind_template(ordered, bodies=bodies, lanes=lanes)
        wanted = _own_inputs(self.program)
        self.inputs = {name: draw(self.program, name) for name in wanted}

    def run(self, given: Mapping[str, Any]) -> tuple[Stopwatch, Mapping[str, Any]]:
        """The time of one run, and what it made that outlives it."""
        frame: list[Any] = [None] * len(self.bound.slots)
        for name in self.program.inputs:
            frame[self.bound.slots[name]] = given[name]
        watch = Stopwatch(self.device)
        for closure in self.bound.closures:
            closure(frame)
        watch.stop()
        made = (*self.program.outputs, *self.program.kept)
        return watch, {name: frame[self.bound.slots[name]] for name in made}


def _own_inputs(program: Program) -> Iterator[str]:
    """Inputs that are drawn: of a backward only gradients and accumulators, the rest is kept."""
    backward = program.name.endswith("backward")
    for name in program.inputs:
        if not backward or name.startswith(("d.", "acc.")):
            yield name


def _passes(found: Measured) -> Iterator[tuple[str, Pass]]:
    """What was timed, by name."""
    yield "forward", found.forward
    yield "backward", found.backward
    if found.first is not None:
        yield "first", found.first


def render(found: Measured) -> str:
    """What was timed and what is kept, as text; `first` is the backward that writes."""
    lines = [f"{found.block}, {found.tokens} tokens a rank"]
    for name, one in _passes(found):
        over = one.ms.median / one.floor_ms if one.floor_ms else 0.0
        lines.append(
            f"  {name:<9} {one.ms.text(3)} ms, {one.tflops:,.3g} TFLOP/s, "
            f"{over:.2f} times its products at the ceilings"
        )
    lines.append(f"  kept      {found.kept_bytes / 2**20:,.1f} MiB for the backward")
    for name, size in sorted(found.kept.items(), key=lambda item: -item[1]):
        lines.append(f"    {name:<14} {size / 2**20:>10,.1f} MiB")
    return "\n".join(lines)


def record(found: Measured) -> dict[str, object]:
    """The same as JSON."""

    def one(which: Pass) -> dict[str, object]:
        return {
            "ms": which.ms.record(),
            "flops": which.flops,
            "tflops": which.tflops,
            "floor_ms": which.floor_ms,
        }

    return {
        "block": found.block,
        "tokens": found.tokens,
        **{name: one(which) for name, which in _passes(found)},
        "kept": dict(found.kept),
    }

"""A nominal price for a task, enough to decide what hides under what.

    task          max(FLOPs / rate, bytes / memory bandwidth)
    collective    latency + wire bytes / link bandwidth

The planner's machines give real prices.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weft.graph.dims import Sizes
from weft.graph.opset import FIRST
from weft.graph.program import Program, Task
from weft.schedule.action import is_collective


@dataclass(frozen=True, kw_only=True, slots=True)
class Nominal:
    """An accelerator: 60 % of an H800's BF16 peak, its HBM and its NVLink (paper, Table 4)."""

    flops: float = 6e14
    memory: float = 3e12
    link: float = 1.5e11
    latency: float = 1e-5


Pricing = Callable[[Task, Program, Sizes], float]  # seconds of a task; the caller may bring one

_VIEWS = frozenset({"slice_chunk"})  # of a whole weight, whose bytes would be the dearest of all

BYTES: Mapping[str, int] = {"act": 2, "acc": 4, "bf16": 2, "i32": 4, "u8": 1, "i64": 8, "host": 0}


def nominal_pricing(nominal: Nominal | None = None) -> Pricing:
    """Prices where no machine was asked for."""
    rates = nominal or Nominal()
    return lambda task, program, n: price(task, program, n, rates)


def price(task: Task, program: Program, n: Sizes, nominal: Nominal) -> float:
    """Nominal seconds of one task."""
    if task.body in _VIEWS:
        return 0.0
    if is_collective(task):
        return nominal.latency + wire_bytes(task, program, n, BYTES) / nominal.link
    moved = moved_bytes(task, program, n, BYTES)
    return max(flops(task, n) / nominal.flops, moved / nominal.memory)


def value_bytes(name: str, program: Program, n: Sizes, widths: Mapping[str, int]) -> int:
    """Bytes of one value at balanced routing."""
    value = program.values[name]
    return n.count(value.dims) * widths[value.kind]


def moved_bytes(task: Task, program: Program, n: Sizes, widths: Mapping[str, int]) -> int:
    """Bytes that a task reads and writes; of a sum that it writes first it reads nothing."""
    writes = task.phase == FIRST
    read = (value for value in task.inputs if not (writes and value.startswith("acc.")))
    return sum(value_bytes(v, program, n, widths) for v in (*read, *task.outputs))


def flops(task: Task, n: Sizes) -> int:
    """Multiply-adds counted twice; a gradient of either kind costs one forward (attention 2.5)."""
    numbers = {**n.numbers, **{old: n.count(new) for old, new in task.renames.items()}}
    work = task.op.flops(Sizes(numbers=numbers, bounds=n.bounds))
    match task.phase:
        case "dgrad" if task.op.name in ("attention", "attention_part", "sink_attention"):
            return work * 5 // 2  # five products of the forward's two
        case "fused":
            return 3 * work
        case _:
            return work


def wire_bytes(task: Task, program: Program, n: Sizes, widths: Mapping[str, int]) -> float:
    """Bytes that a rank receives from others in a collective, at balanced routing."""
    degree = n.ranks.get(task.group, 1)
    size = value_bytes(task.inputs[0], program, n, widths)
    result = value_bytes(task.outputs[0], program, n, widths)
    match task.op.wire:
        case "even" | "rows" | "groups":
            return size * (degree - 1) / degree
        case "scatter":
            return size - result
        case "shift":
            return size
        case "gather":
            own = n.count(program.values[task.inputs[0]].dims)
            return result - own * widths[program.values[task.outputs[0]].kind]
        case "send" | "receive":
            return size
        case "reduce":
            return 2 * size * (degree - 1) / degree
        case _:
            raise AssertionError(f"{task.op.wire=}")

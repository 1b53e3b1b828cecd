"""A nominal price for a task, enough to decide what hides under what; the planner's machines give real ones.

    time = max(FLOPs / rate, bytes / memory bandwidth)        collective: latency + wire bytes / link bandwidth
"""

from collections.abc import Mapping
from dataclasses import dataclass

from weft.graph.dims import Sizes
from weft.graph.program import Program, Task
from weft.schedule.action import is_collective


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """One nominal accelerator: about 60 % of an H800's BF16 peak, its HBM and its NVLink (paper Table 4)."""

    flops: float = 6e14
    memory: float = 3e12
    link: float = 1.5e11
    latency: float = 1e-5


BYTES: Mapping[str, int] = {"act": 2, "acc": 4, "i32": 4, "i64": 8, "host": 0}


def price(task: Task, program: Program, n: Sizes, rates: Rates) -> float:
    """Nominal seconds of one task."""
    if is_collective(task):
        return rates.latency + wire_bytes(task, program, n, BYTES) / rates.link
    moved = sum(value_bytes(v, program, n, BYTES) for v in (*task.inputs, *task.outputs))
    return max(flops(task, n) / rates.flops, moved / rates.memory)


def value_bytes(name: str, program: Program, n: Sizes, widths: Mapping[str, int]) -> int:
    """Bytes of one value at balanced routing; flat buckets, whose size is not a dim of the layer, count nothing."""
    value = program.values[name]
    if any(term in ("Z", "z") for term in value.dims.split()):
        return 0
    return n.count(value.dims) * widths[value.kind]


def flops(task: Task, n: Sizes) -> int:
    """Multiply-adds counted twice; an input gradient and a weight gradient cost one forward each (attention 2.5)."""
    if any(term in ("Z", "z") for p in task.op.inputs for term in p.dims.split()):
        return 0
    numbers = {**n.numbers}
    numbers.update({old: n.count(new) for old, new in task.renames.items()})
    work = task.op.flops(Sizes(numbers=numbers, bounds=n.bounds))
    match task.phase:
        case "dgrad" if task.op.name == "attention":
            return work * 5 // 2  # five products of the forward's two
        case "fused":
            return 3 * work
        case _:
            return work


def wire_bytes(task: Task, program: Program, n: Sizes, widths: Mapping[str, int]) -> float:
    """Bytes that a rank receives from others in a collective, at balanced routing."""
    degree = {"sp": n.X, "ep": n.Y}.get(task.group, 1)
    size = value_bytes(task.inputs[0], program, n, widths)
    match task.op.wire:
        case "even" | "rows" | "scatter":
            return size * (degree - 1) / degree
        case "gather":
            return size * (degree - 1)
        case "reduce":
            return 2 * size * (degree - 1) / degree
        case _:
            raise AssertionError(f"{task.op.wire=}")

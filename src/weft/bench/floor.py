"""The least time a task can take at given ceilings: for its operations or its bytes.

What a task asks for is what the planner prices (`planner.work`); here it is divided by what the
device reaches at best, and the longer of the two counts. A collective has no floor of its own: what
counts is how much of it is exposed.
"""

from collections.abc import Mapping
from types import MappingProxyType

from weft.bench.ceilings import Ceilings
from weft.compose.price import value_bytes
from weft.compose.step import Step
from weft.graph.dims import Sizes
from weft.graph.program import Program, Task
from weft.planner.work import Attend, Passing, Products, work

# Operands that a body rewrites and does not return: their bytes count once more.
REWRITTEN: Mapping[str, tuple[str, ...]] = MappingProxyType({"adamw": ("master", "mean", "square")})

# Operands that a body writes and does not read: their bytes count once less.
FILLED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"adamw": ("own",), "round_params": ("own",)}
)


def floor_ms(
    task: Task, program: Program, n: Sizes, widths: Mapping[str, int], ceilings: Ceilings
) -> float:
    """Milliseconds that a task cannot go below on this device."""
    asked = work(task, program, n, widths)
    match asked:
        case Products(flops=flops, moved=moved):
            return 1e3 * max(flops / ceilings.product, moved / ceilings.copy)
        case Attend(flops=flops, phase=phase):
            rate = ceilings.attention_dgrad if phase == "dgrad" else ceilings.attention
            return 1e3 * flops / rate
        case Passing(moved=moved):
            return 1e3 * (moved + _rewritten(task, program, n, widths)) / ceilings.copy
        case _:
            return 0.0


def floors(
    step: Step, n: Sizes, widths: Mapping[str, int], ceilings: Ceilings
) -> Mapping[str, float]:
    """The floor of each body over a step."""
    found: dict[str, float] = {}
    for instance in step.instances:
        program = step.templates[instance.template].program
        for task in program.tasks:
            one = floor_ms(task, program, n, widths, ceilings)
            found[task.body] = found.get(task.body, 0.0) + one
    return found


def _rewritten(task: Task, program: Program, n: Sizes, widths: Mapping[str, int]) -> int:
    if task.body not in FILLED:
        return 0
    ports = dict(zip((p.name for p in task.op.inputs), task.inputs, strict=True))

    def count(names: tuple[str, ...]) -> int:
        return sum(value_bytes(ports[name], program, n, widths) for name in names)

    return count(REWRITTEN.get(task.body, ())) - count(FILLED[task.body])

"""What a task asks of a machine: products, attention, passes over memory, messages, host time.

The numbers come from the program alone: shapes of the values it reads and makes, FLOPs of the
vocabulary, wire bytes of the collective. What they cost is another file's question (`cost`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from types import MappingProxyType

from weft.compose.price import BYTES, flops, moved_bytes, value_bytes, wire_bytes
from weft.graph.dims import Sizes
from weft.graph.opset import FIRST, Lane, Tolerance
from weft.graph.program import Program, Task
from weft.planner.machine import REPEATABLE
from weft.schedule.action import is_collective

# Bodies that move rows by an index, or interleave the short pieces that ranks sent. (What leaves
# for other ranks is not among them: a projection can write its columns in their order.)
ROWS = frozenset(
    {
        "permute",
        "reorder",
        "gather_sum",
        "join_heads",
    }
)

# Bodies that hand out views of what they are given: no kernel runs. So do those that lay heads out
# for the ranks of a group, where there is one rank.
VIEWS = frozenset({"split_heads", "split_heads.dgrad", "take_block", "slice_chunk"})

# Collectives by what the wire sees, as nccl-tests names them.
ALGORITHMS: Mapping[str, str] = MappingProxyType(
    {
        "even": "all_to_all",
        "rows": "all_to_all",
        "groups": "all_to_all",
        "scatter": "reduce_scatter",
        "shift": "all_to_all",
        "gather": "all_gather",
        "reduce": "all_reduce",
        "send": "all_to_all",  # which is made of messages
        "receive": "all_to_all",
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Products:
    """`groups` matrix products of `rows` in all by `n` by `k`, and the bytes they touch."""

    rows: int
    n: int
    k: int
    groups: int
    phase: str
    flops: int
    moved: int
    added: int = 0  # bytes of a pass of its own that adds a gradient to its sum, or begins it


@dataclass(frozen=True, kw_only=True, slots=True)
class Attend:
    """Causal attention over sequences of a length; `heads` counts those of every sequence."""

    length: int
    heads: int
    phase: str
    flops: int


def filled(asked: Attend, multiprocessors: int, kernel: str = REPEATABLE) -> float:
    """The share of a device's multiprocessors at work in the waves of an attention.

    A backward whose bits repeat (flash attention's deterministic mode) has a block for each head,
    or where these are fewer than multiprocessors as many for each as fill the device once; one runs
    on a multiprocessor at a time. Forwards, and other backwards, have a block for 128 positions of
    a head: far more.

    Example:
        >>> [round(filled(Attend(length=4096, heads=n, phase="dgrad", flops=1), 132), 2)
        ...  for n in (32, 64, 128, 132)]
        [0.61, 0.73, 0.97, 1.0]
    """
    if asked.phase != "dgrad" or kernel != REPEATABLE:
        return 1.0
    blocks = asked.heads * ceil(multiprocessors / asked.heads)
    return blocks / (ceil(blocks / multiprocessors) * multiprocessors)


class Way(StrEnum):
    """How a pass goes through memory: in a row, row by row by an index, or summing such rows."""

    STREAM = "stream"
    ROWS = "rows"
    SUMS = "sums"


@dataclass(frozen=True, kw_only=True, slots=True)
class Passing:
    """A body that is bound by memory: its bytes, and how it goes through them."""

    body: str
    moved: int
    way: Way


@dataclass(frozen=True, kw_only=True, slots=True)
class Sending:
    """A collective: bytes that a rank receives, over which group, how often its input is cut, and
    how many ranks the job has.
    """

    algorithm: str
    axis: str
    label: str
    wire: float
    degree: int
    tensor: int
    world: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """The host waits for the device, or nothing runs at all."""

    synchronises: bool


Work = Products | Attend | Passing | Sending | Waiting


def work(task: Task, program: Program, n: Sizes, widths: Mapping[str, int] = BYTES) -> Work:
    """What one task asks of a machine; dynamic dims count as `n` says."""
    if is_collective(task):
        return _sending(task, program, n, widths)
    if task.lane is Lane.HOST:
        return Waiting(synchronises=True)
    if task.body in VIEWS or task.attributes.get("sp") == 1:
        return Waiting(synchronises=False)
    if task.op.tolerance is Tolerance.ATTENTION and not task.is_wgrad:
        return _attend(task, n)
    moved = moved_bytes(task, program, n, widths)
    if task.op.tolerance is Tolerance.MATMUL:
        return _products(task, program, n, widths, moved)
    if task.op.name in ROWS:
        way = Way.SUMS if task.body in SUMS else Way.ROWS
        return Passing(body=task.body, moved=_touched(task, program, n, widths), way=way)
    return Passing(body=task.body, moved=moved, way=Way.STREAM)


def _attend(task: Task, n: Sizes) -> Attend:
    asked = flops(task, n)
    forward = asked * 2 // 5 if task.phase == "dgrad" else asked
    heads = max(forward // (2 * n.S * n.S * n.C), 1)
    return Attend(length=n.S, heads=heads, phase=task.phase, flops=asked)


def _touched(task: Task, program: Program, n: Sizes, widths: Mapping[str, int]) -> int:
    """Bytes of a gather: it reads as much as it writes; one that sums reads all it is given."""
    made = sum(value_bytes(v, program, n, widths) for v in task.outputs)
    given = sum(value_bytes(v, program, n, widths) for v in task.inputs)
    return made + given if task.body in SUMS else 2 * made


SUMS = frozenset({"gather_sum", "permute.dgrad"})


def _products(
    task: Task, program: Program, n: Sizes, widths: Mapping[str, int], moved: int
) -> Work:
    """A product from the shape of its weight, which its accumulator shares."""
    done = flops(task, n)
    weight = next(v for v in task.inputs if "w" in v.split("."))  # `acc.a.w.up` of a woven segment
    *groups, out, width = n.shape(program.values[weight].dims)
    rows = done // (2 * out * width) // (3 if task.phase == "fused" else 1)
    if out < NARROW:  # the router: bound by reading its tokens
        return Passing(body=task.body, moved=moved, way=Way.STREAM)
    return Products(
        rows=rows,
        n=out,
        k=width,
        groups=groups[0] if groups else 1,
        phase=task.phase,
        flops=done,
        moved=moved,
        added=_added(groups, program, n, task, widths),
    )


def _added(
    groups: list[int], program: Program, n: Sizes, task: Task, widths: Mapping[str, int]
) -> int:
    """Grouped products cannot add to a sum in FP32: they write, and a pass reads and adds; the
    first of a step is read and widened.
    """
    if not task.is_wgrad or not groups:
        return 0
    (total,) = task.outputs
    count = n.count(program.values[total].dims)
    sums = 1 if task.phase == FIRST else 2
    return count * (2 * widths["act"] + sums * widths["acc"])


NARROW = 256  # columns: a tile is that wide, below it the tensor cores idle and memory decides


def _sending(task: Task, program: Program, n: Sizes, widths: Mapping[str, int]) -> Sending:
    wire = wire_bytes(task, program, n, widths)
    given = value_bytes(task.inputs[0], program, n, widths)
    made = value_bytes(task.outputs[0], program, n, widths)
    algorithm = ALGORITHMS[str(task.op.wire)]
    return Sending(
        algorithm=algorithm,
        axis=task.group,
        label=str(task.attributes["label"]),
        wire=wire,
        degree=_degree(task, n, given, made),
        tensor=max(given, made),
        world=n.ranks.get("world", 1),
    )


def _degree(task: Task, n: Sizes, given: int, made: int) -> int:
    """Ranks of the group: those of its axis where the sizes know it, else by what is cut."""
    if task.group in n.ranks:
        return n.ranks[task.group]
    return max(1, round(max(given, made) / max(min(given, made), 1)))

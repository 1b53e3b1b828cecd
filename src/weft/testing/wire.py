"""What a step must receive: bytes by axis, collective and label, known before anything runs.

    wire      x put in by each of n ranks    elements that reach a rank from the others
    even      all-to-all of equal blocks     x (n-1) / n
    rows      all-to-all of ragged rows      rows chosen elsewhere for here, times their width
    groups    the same in 8 bits by channel  those, and the rows that their scales fill
    gather    all-gather                     x (n-1)
    scatter   reduce-scatter                 x (n-1) / n
    shift     one hop of a ring              x
    reduce    all-reduce                     2 x (n-1) / n
    receive   one half of a message          x

Sizes come from the letters of the programs of a step, from flat buckets and from the choices of its
tokens; what a transport counts is not asked. `forward_payload` is the same quantity from the
paper's formula, which knows no program.

Paper: 1.2, the derived column.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, partial
from math import floor
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from weft.compose.first import usual_of
from weft.compose.instance import Instance
from weft.compose.plan import Plan, sizes
from weft.compose.stage import chunks_of
from weft.compose.step import Step
from weft.graph.dims import Sizes
from weft.graph.program import Program, Task
from weft.model.families import Kind
from weft.parallel.layout import Dispatch, FeedForward, Layout
from weft.parallel.volume import attention_volume, experts_volume
from weft.runtime.batch import pick
from weft.schedule.action import is_collective
from weft.schedule.sequence import CHUNK

Key = tuple[str, str, str]  # axis, collective, label
Choices = Callable[[int, int], NDArray[np.int64]]  # micro-batch, layer -> experts [N, k]
# micro-batch, layer, tokens of a rank -> rows [ep, ep]
Between = Callable[[int, int, range], NDArray[np.int64]]

COLLECTIVES: Mapping[str, str] = MappingProxyType(
    {
        "even": "all_to_all",
        "rows": "all_to_all_rows",
        "groups": "all_to_all_rows",
        "gather": "all_gather",
        "scatter": "reduce_scatter",
        "shift": "all_to_all_rows",
        "reduce": "all_reduce",
        "send": "send",
        "receive": "receive",
    }
)
SHARED = (Kind.SHARED_MOE, Kind.GATED_MOE)
WIDTHS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "float64": MappingProxyType({"act": 8, "acc": 8, "bf16": 2, "u8": 1, "i64": 8}),
        "float32": MappingProxyType({"act": 4, "acc": 4, "bf16": 2, "u8": 1, "i64": 8}),
        "bfloat16": MappingProxyType({"act": 2, "acc": 4, "bf16": 2, "u8": 1, "i64": 8}),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """What one collective brings one rank."""

    template: str
    key: Key
    elements: Fraction
    kind: str


def predict(step: Step, choices: Choices) -> Mapping[Key, int]:
    """The bytes one rank receives in a step whose tokens choose these experts."""
    widths = WIDTHS[step.plan.precision]
    total: Counter[Key] = Counter()
    for transfer in transfers(step, choices):
        total[transfer.key] += floor(transfer.elements * widths[transfer.kind])
    return total


def transfers(step: Step, choices: Choices) -> Iterator[Transfer]:
    """Every collective of a step, in the order of its programs; groups of one bring nothing."""
    letters = sizes(step.plan)
    between = cache(partial(rows_between, step.plan, choices))
    for instance in step.instances:
        program = step.templates[instance.template].program
        for task in filter(is_collective, program.tasks):
            n = step.plan.layout.degree(task.group)
            if n > 1:
                elements = _elements(step, instance, program, task, letters, between)
                wire = str(task.op.wire)
                yield Transfer(
                    template=_strand(instance, task),
                    key=(task.group, COLLECTIVES[wire], str(task.attributes["label"])),
                    elements=elements * _share(wire, n),
                    kind=program.values[_sent(task)].kind,
                )


def _sent(task: Task) -> str:
    """The value whose dtype travels; a parameter's shard travels in the dtype of its bucket."""
    return task.inputs[1] if task.op.name.startswith("gather_") else task.inputs[0]


def _share(wire: str, n: int) -> Fraction:
    """Elements that come from others over elements put in (rows are counted one by one)."""
    match wire:
        case "even" | "scatter":
            return Fraction(n - 1, n)
        case "gather":
            return Fraction(n - 1)
        case "reduce":
            return Fraction(2 * (n - 1), n)
        case "rows" | "groups" | "shift" | "receive":
            return Fraction(1)
        case "send":
            return Fraction(0)
        case _:
            raise AssertionError(f"{wire=}")


def _elements(
    step: Step, instance: Instance, program: Program, task: Task, n: Sizes, between: Between
) -> Fraction:
    if task.op.wire in ("rows", "groups"):
        counted, *row = program.values[task.inputs[0]].dims.split()
        tokens = _tokens(step.plan, task, counted)
        rows = _rows_from_others(step.plan, instance, task, between, tokens)
        return Fraction(rows * n.count(" ".join(row)))
    return Fraction(n.count(program.values[task.inputs[0]].dims))


# ---- rows between ranks --------------------------------------------------------------------------


def _tokens(plan: Plan, task: Task, counted: str) -> range:
    """The tokens of each rank whose rows travel: all of them, or those of a chunk."""
    if CHUNK not in counted:
        return range(plan.local_tokens)
    chunk, size = int(task.name.rpartition(CHUNK)[2]), plan.local_tokens // plan.chunks
    return range(chunk * size, (chunk + 1) * size)


def _rows_from_others(
    plan: Plan, instance: Instance, task: Task, between: Between, tokens: range
) -> int:
    rows = between(*_place(instance, task), tokens)
    own = plan.layout.ep_rank(plan.rank)
    arriving = rows[own, :] if task.attributes["reverse"] else rows[:, own]
    if task.op.wire == "groups":  # and four rows of bytes for the scales of each group
        arriving = arriving + 4 * -(-arriving // int(task.attributes["group"]))
    return int(arriving.sum() - arriving[own])


def rows_between(
    plan: Plan, choices: Choices, index: int, layer: int, tokens: range | None = None
) -> NDArray[np.int64]:
    """Rows (or visits) between the ranks of this rank's expert-parallel group, as [source,
    destination].

    `index` counts the micro-batches of one rank; `tokens` are those of a rank that count, or all.
    """
    ep = plan.layout.ep
    first = plan.rank // ep * ep  # groups are blocks, of a stage and so of the world
    counted = range(plan.local_tokens) if tokens is None else tokens
    between = np.zeros((ep, ep), np.int64)
    for source in range(ep):
        mine = own_choices(plan, first + source, index, choices, layer)
        experts = mine[counted.start : counted.stop]
        there = experts // plan.local_experts
        if plan.layout.dispatch is Dispatch.DEDUPLICATED:  # a token counts once a rank
            between[source] = [(there == rank).any(1).sum() for rank in range(ep)]
        else:
            np.add.at(between[source], there.ravel(), 1)
    return between


def own_choices(
    plan: Plan, rank: int, index: int, choices: Choices, layer: int
) -> NDArray[np.int64]:
    """The choices of the tokens that a rank holds of its micro-batch `index`."""
    dp_rank = plan.layout.dp_rank(rank)
    whole = choices(dp_rank * plan.local_micro_batches + index, layer)
    return pick(whole, replace(plan, rank=rank).share.tokens)


def _strand(instance: Instance, task: Task) -> str:
    """The template that a task is of: of two that are braided, that of its strand."""
    first, *other = usual_of(instance.template).split("+")
    return other[0] if other and task.name.startswith("f.") else first


_KEPT = re.compile(r"m(\d+)\.l(\d+)\..*")
_INPUT = re.compile(r"m(\d+)\.x\.(\d+)")


def _place(instance: Instance, task: Task) -> tuple[int, int]:
    """The micro-batch and the layer whose choices a ragged collective follows.

    An instance may hold strands of several (`compose.weave`): what counts is whose splits it reads,
    kept from a forward, or made here from the input of the layer.
    """
    splits = task.inputs[1]
    strand = splits[: splits.rfind(".") + 1]
    kept = splits in instance.reads
    key = instance.reads[splits if kept else f"{strand}x"]
    found = (_KEPT if kept else _INPUT).fullmatch(key)
    assert found, f"{key=} {task.name=} {instance.template=}"
    return int(found[1]), int(found[2])


# ---- the paper's formulas ------------------------------------------------------------------------


def evenly(tokens: int, experts: int, top_k: int, layout: Layout) -> NDArray[np.int64]:
    """Choices of which any ep in a row fall on the ep ranks of an expert-parallel group.

    Example:
        >>> evenly(2, 8, 2, Layout(sp=4, ep=4)).tolist()
        [[0, 2], [4, 6]]
    """
    strided = np.arange(experts).reshape(layout.ep, -1).T.ravel()
    return strided[np.arange(tokens * top_k) % experts].reshape(tokens, top_k)


def forward_payload(plan: Plan) -> Mapping[tuple[str, ...], Fraction]:
    """Elements that the forward of a step brings one rank, by labels, at even routing: the derived
    formulas of `parallel.volume`, over its layers and micro-batches.
    """
    shape, layout = plan.shape, plan.layout
    kinds = [shape.kind(i) for chunk in chunks_of(plan) for i in chunk.layers]
    expected: dict[tuple[str, ...], Fraction] = {}
    if layout.sp > 1:
        volume = attention_volume(
            layout,
            tokens=plan.tokens,
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
        )
        expected[volume.labels] = volume.derived * len(kinds) * plan.local_micro_batches
    sliced = layout.ffn is FeedForward.TP and layout.sp > 1
    if layout.ep > 1 or sliced:
        volume = experts_volume(layout, tokens=plan.tokens, hidden=shape.hidden, top_k=shape.top_k)
        times = Fraction(_num_routed(plan))
        if sliced:  # dense layers too; shared experts read what is gathered and scatter their own
            times = len(kinds) + Fraction(sum(k in SHARED for k in kinds), 2)
        expected[volume.labels] = volume.derived * times * plan.local_micro_batches
    return expected


def predicted_forward(step: Step, choices: Choices, labels: Iterable[str]) -> Fraction:
    """Elements of these labels in the forward programs of a step."""
    return sum(
        (
            transfer.elements
            for transfer in transfers(step, choices)
            if transfer.template.endswith(".forward") and transfer.key[2] in labels
        ),
        Fraction(0),
    )


def _num_routed(plan: Plan) -> int:
    mine = (i for chunk in chunks_of(plan) for i in chunk.layers)
    return sum(plan.shape.kind(i) is not Kind.DENSE for i in mine)

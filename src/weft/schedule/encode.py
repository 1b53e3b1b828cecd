"""Fewer bits on the wire: what stands in a program around a collective whose payload is encoded.

    out = all_to_all_rows(x, splits)     packet = encode_rows(x)
                                         here   = all_to_all_packets(packet, splits)
                                         out    = decode_rows(here)

    out = reduce_scatter(x)              packet = encode_rows(x)
                                         here   = all_to_all_blocks(packet)
                                         out    = decode_row_sums(here)       sums at the receiver

`encode` rewrites the collectives of one program that it is told, by operator and label. It stands
behind `differentiate`, not before it: the derivative of a crossing is the crossing back, and each
of the two has its own encoding or none. To differentiate an encoded crossing would need a gradient
of rounding, which is zero; that of the identity in its place is what this order gives without
saying so. And it stands before `rematerialise`, so that a crossing that runs again is encoded too,
and may start from the packet.

`weigh_after` moves the gate weight behind the second product of the experts, where a scale of eight
bits has less range to cover. It stands before `differentiate`, since it changes what is derived.

Paper: 4.2, 4.3.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from weft.errors import ProgramError
from weft.graph.opset import lookup
from weft.graph.program import Attribute, Program, Task, Value, verify


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A scale for every `columns` elements of a row of `width`."""

    columns: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Channels:
    """A scale for every `group` rows of a column."""

    group: int


Scales = Rows | Channels
Crossing = tuple[str, str]  # operator, label


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """What both ends of a crossing know: ranks of the group, tokens on each, the dtype."""

    ranks: int
    tokens: int
    dtype: str


def encode(program: Program, crossings: Mapping[Crossing, Scales], ends: Ends) -> Program:
    """The program with the payload of these collectives encoded; all else keeps its name.

    Raises:
        ProgramError: a collective that has no encoded form, or operands counted otherwise.
    """
    tasks: list[Task] = []
    values = dict(program.values)
    for task in program.tasks:
        scales = crossings.get((task.body, str(task.attributes.get("label", ""))))
        if scales is None:
            tasks.append(task)
            continue
        form = _form(task, [_rows(values[name]) for name in _both(task)], scales, ends)
        tasks += _expand(task, form)
        for name, dims in zip(_between(task), (form.sent, form.arrived), strict=True):
            values[name] = Value(name=name, dims=dims, kind="u8")
    return verify(replace(program, tasks=tuple(tasks), values=MappingProxyType(values)))


def weigh_after(program: Program) -> Program:
    """The program whose experts multiply a row by its gate weight behind the second product.

    `<W^T dy, a>` is the gradient of the weight in either place, so nothing more is kept. A bias of
    that product is weighted already.
    """
    weights: dict[str, str] = {}
    tasks: list[Task] = []
    for task in program.tasks:
        match task.body, task.inputs:
            case "swiglu", (u, row_weights, _):
                (s,) = task.outputs
                weights[s] = row_weights
                tasks.append(replace(task, body="dense_swiglu", inputs=(u,), renames=_ROWS))
            case "clamped_swiglu", (u, row_weights):
                (s,) = task.outputs
                weights[s] = row_weights
                tasks.append(replace(task, body="clamped_glu", inputs=(u,)))
            case "expert_down", (s, w, ends) if s in weights:
                inputs = (s, w, ends, weights[s])
                tasks.append(replace(task, body="weighted_down", inputs=inputs))
            case _:
                tasks.append(task)
    return verify(replace(program, tasks=tuple(tasks)))


_ROWS: Mapping[str, str] = MappingProxyType({"T": "R", "2W": "2F", "W": "F"})


# ---- forms ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One of the three calls that a collective becomes."""

    body: str
    attributes: Mapping[str, Attribute]
    renames: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """The three calls, and the dims of what is sent and of what arrives."""

    encode: _Call
    cross: _Call
    decode: _Call
    sent: str
    arrived: str


_PACKED: Mapping[str, str] = MappingProxyType({"O": "b", "R": "a", "T": "t", "U": "u"})


def _form(task: Task, letters: Sequence[str], scales: Scales, ends: Ends) -> _Form:
    """How a collective is encoded; `letters` are the rows of its operand and of its result."""
    source, result = letters
    a, b = _PACKED[source], _PACKED[result]
    match task.body, scales:
        case "all_to_all_rows", Rows():
            return _Form(
                encode=_encode_rows(scales, source),
                cross=_Call(
                    body="all_to_all_packets", attributes={}, renames={"O": source, "R": result}
                ),
                decode=_decode_rows("decode_rows", scales, ends, {"R": result}),
                sent=f"{source} p", arrived=f"{result} p",
            )  # fmt: skip
        case "all_gather", Rows():
            return _Form(
                encode=_encode_rows(scales, source),
                cross=_Call(body="all_gather_packets", attributes={}, renames={}),
                decode=_decode_rows("decode_rows", scales, ends, {"R": result}),
                sent=f"{source} p", arrived=f"{result} p",
            )  # fmt: skip
        case "reduce_scatter", Rows():
            sums = _decode_rows("decode_row_sums", scales, ends, {})
            return _Form(
                encode=_encode_rows(scales, source),
                cross=_Call(body="all_to_all_blocks", attributes={}, renames={}),
                decode=replace(sums, attributes={**sums.attributes, "ranks": ends.ranks}),
                sent=f"{source} p", arrived=f"{source} p",
            )  # fmt: skip
        case "all_to_all_rows", Channels():
            ragged = {"reverse": task.attributes["reverse"], "group": scales.group}
            return _Form(
                encode=_Call(
                    body="encode_channels", attributes=ragged, renames={"O": source, "b": a}
                ),
                cross=_Call(
                    body="all_to_all_groups", attributes={"group": scales.group},
                    renames={"b": a, "a": b},
                ),
                decode=_Call(
                    body="decode_channels", attributes={**ragged, "dtype": ends.dtype},
                    renames={"a": b, "R": result},
                ),
                sent=f"{a} D", arrived=f"{b} D",
            )  # fmt: skip
        case "all_gather", Channels():
            return _Form(
                encode=_encode_blocks(scales, 1, {}),
                cross=_Call(
                    body="all_gather_packets", attributes={},
                    renames={"T": a, "U": b, "p": "D"},
                ),
                decode=_decode_blocks("decode_blocks", scales, ends),
                sent=f"{a} D", arrived=f"{b} D",
            )  # fmt: skip
        case "reduce_scatter", Channels():
            return _Form(
                encode=_encode_blocks(scales, ends.ranks, {"T": source, "t": a}),
                cross=_Call(body="all_to_all_blocks", attributes={}, renames={"U": a, "p": "D"}),
                decode=_decode_blocks("decode_block_sums", scales, ends),
                sent=f"{a} D", arrived=f"{a} D",
            )  # fmt: skip
        case _:
            raise ProgramError(f"{task.name}: {task.body} has no encoded form")


def _encode_rows(scales: Rows, rows: str) -> _Call:
    return _Call(body="encode_rows", attributes={"columns": scales.columns}, renames={"R": rows})


def _decode_rows(body: str, scales: Rows, ends: Ends, renames: Mapping[str, str]) -> _Call:
    attributes = {"columns": scales.columns, "width": scales.width, "dtype": ends.dtype}
    return _Call(body=body, attributes=attributes, renames=renames)


def _encode_blocks(scales: Channels, ranks: int, renames: Mapping[str, str]) -> _Call:
    attributes = {"ranks": ranks, "group": scales.group}
    return _Call(body="encode_blocks", attributes=attributes, renames=renames)


def _decode_blocks(body: str, scales: Channels, ends: Ends) -> _Call:
    attributes = {
        "ranks": ends.ranks, "rows": ends.tokens, "group": scales.group, "dtype": ends.dtype,
    }  # fmt: skip
    return _Call(body=body, attributes=attributes, renames={})


# ---- tasks ---------------------------------------------------------------------------------------


def _rows(value: Value) -> str:
    """The letter of a value's rows, of which a packet must know its own."""
    letter = value.dims.split()[0]
    if letter not in _PACKED:
        raise ProgramError(
            f"{value.name}: found rows counted by {letter!r}, which have no encoded form, expected "
            f"one of {', '.join(_PACKED)}; leave this crossing as wide as it is"
        )
    return letter


def _both(task: Task) -> tuple[str, str]:
    return task.inputs[0], task.outputs[0]


def _between(task: Task) -> tuple[str, str]:
    """The names of what is sent and of what arrives."""
    (result,) = task.outputs
    return f"{result}.sent", f"{result}.arrived"


def _expand(task: Task, form: _Form) -> Iterator[Task]:
    """The three tasks. The splits of ragged rows go wherever an operator has a port for them."""
    (source, *splits), (result,) = task.inputs, task.outputs
    sent, arrived = _between(task)
    chain = (
        (f"{task.name}.encode", form.encode, source, sent),
        (task.name, form.cross, sent, arrived),
        (f"{task.name}.decode", form.decode, arrived, result),
    )
    for name, call, first, last in chain:
        extra = splits[: len(lookup(call.body).inputs) - 1]
        kept: Mapping[str, Attribute] = task.attributes if call is form.cross else {}
        yield Task(
            name=name,
            body=call.body,
            inputs=(first, *extra),
            outputs=(last,),
            attributes=MappingProxyType({**kept, **call.attributes}),
            renames=MappingProxyType(dict(call.renames)),
        )

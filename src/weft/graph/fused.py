"""Fused operators: each is the sequence of bodies that it replaces, and nothing else is said of it.

    rows = permute(h, order, slot_row, top_k)       permute_up_swiglu(h, order, slot_row, w, ends,
    u = expert_up(rows, w, ends)                                      row_weights)
    s = swiglu(u, row_weights, ends)                gives u and s; no value holds the rows

Ports, FLOPs and the reference body come from the parts. What a sequence makes and does not give is
never written. A forward part in the sequence of a backward is a value made again inside of it.

`schedule.fuse` puts them into a program; they have no derivative, since they stand behind it.

Paper: 2.2, 2.3.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from weft.errors import ProgramError
from weft.graph.dims import Sizes
from weft.graph.opset import FIRST, OPS, Op, Port, Tolerance

# Bodies that move rows and change none: a sequence reads their operand in their place, so that one
# of them may vanish into several.
COPIES = frozenset({"permute", "reorder", "reorder.dgrad", "gather_sum.dgrad"})

# What a part says behind its operands: attributes of its body by name.
_ATTRIBUTES = ("top_k",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One call of a sequence; operands and results have names that hold inside of it."""

    body: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Fused:
    """An operator in place of a sequence; `op` has what its parts read from outside and give."""

    body: str
    parts: tuple[Part, ...]
    op: Op

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(port.name for port in self.op.inputs)

    @property
    def gives(self) -> tuple[str, ...]:
        return tuple(port.name for port in self.op.outputs)


def lookup(name: str) -> Op:
    """The operator of that name, of the vocabulary or fused.

    Raises:
        ProgramError: no such operator.
    """
    if name not in OPERATORS:
        raise ProgramError(
            f"unknown operator {name!r}; the vocabulary is graph/opset.py, and graph/fused.py has "
            "what replaces sequences of it"
        )
    return OPERATORS[name]


def signature(body: str) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """What a body of the vocabulary takes and returns, as ports of the forward.

    Example:
        >>> takes, returns = signature("expert_down.dgrad")
        >>> [port.name for port in takes], [port.name for port in returns]
        (['d', 'w', 'ends'], ['s'])
    """
    name, _, phase = body.partition(".")
    op = OPS[name]
    ports = {port.name: port for port in (*op.inputs, *op.outputs)}
    given = op.differentiable_outputs
    match phase:
        case "":
            return op.inputs, op.outputs
        case "dgrad":
            assert op.dgrad is not None, f"{body=}"
            elsewhere = {name for name, _ in (*op.same_grad, *op.passes_grad)}
            returned = (p for p in op.differentiable_inputs if p.name not in elsewhere)
            return (*given, *(ports[n] for n in op.dgrad)), tuple(returned)
        case "wgrad" | "wgrad_first":
            assert op.wgrad is not None, f"{body=}"
            sums = tuple(replace(port, kind="acc", weight=False) for port in op.weights)
            return (*sums, *given, *(ports[n] for n in op.wgrad)), sums
        case _:
            raise AssertionError(f"{body=}")


_CALL = re.compile(r"(?P<outputs>[\w, ]+) = (?P<body>[\w.]+)\((?P<inputs>[\w, ]+)\)")


def _part(line: str) -> Part:
    found = _CALL.fullmatch(line.strip())
    assert found is not None, f"{line=} is not a call"
    words = tuple(found["inputs"].split(", "))
    return Part(
        body=found["body"],
        inputs=tuple(word for word in words if word not in _ATTRIBUTES),
        outputs=tuple(found["outputs"].split(", ")),
        attributes=tuple(word for word in words if word in _ATTRIBUTES),
    )


def _fused(body: str, sequence: str, *, gives: str) -> Fused:
    parts = tuple(_part(line) for line in sequence.strip().splitlines())
    ports: dict[str, Port] = {}
    made: set[str] = set()
    for part in parts:
        takes, returns = signature(part.body)
        for name, port in zip(part.inputs, takes, strict=True):
            ports.setdefault(name, replace(port, name=name))
        for name, port in zip(part.outputs, returns, strict=True):
            ports[name] = replace(port, name=name)
            made.add(name)
    op = Op(
        name=body.partition(".")[0],
        inputs=tuple(port for name, port in ports.items() if name not in made),
        outputs=tuple(ports[name] for name in gives.split()),
        writes=body.endswith(".wgrad") and OPS[parts[-1].body.partition(".")[0]].writes,
        flops=lambda n: _flops(parts, n),
        tolerance=Tolerance.MATMUL,
        paper="2.3",
    )
    return Fused(body=body, parts=parts, op=op)


def _flops(parts: tuple[Part, ...], n: Sizes) -> int:
    """Those of the parts; a gradient of either kind costs one forward."""
    return sum(OPS[part.body.partition(".")[0]].flops(n) for part in parts)


def _writing(fused: Fused) -> Fused:
    """The sequence of a weight gradient that writes where that one adds."""
    *before, last = fused.parts
    op = last.body.removesuffix(".wgrad")
    body = f"{fused.op.name}.{FIRST}"
    return replace(fused, body=body, parts=(*before, replace(last, body=f"{op}.{FIRST}")))


_TABLE = (
    # ---- forward: the rows of experts are read where they lie, SwiGLU in the product's registers
    _fused(
        "permute_up_swiglu",
        """
        rows = permute(h, order, slot_row, top_k)
        u = expert_up(rows, w, ends)
        s = swiglu(u, row_weights, ends)
        """,
        gives="u s",
    ),
    _fused(
        "reorder_up_swiglu",
        """
        rows = reorder(arrived, order, inverse)
        u = expert_up(rows, w, ends)
        s = swiglu(u, row_weights, ends)
        """,
        gives="u s",
    ),
    _fused(
        "up_swiglu",
        """
        u = expert_up(rows, w, ends)
        s = swiglu(u, row_weights, ends)
        """,
        gives="u s",
    ),
    # ---- backward of the down projection and of SwiGLU: the activation is made again from u
    _fused(
        "swiglu_down_gather.dgrad",
        """
        dd = gather_sum.dgrad(dz, order, top_k)
        ds = expert_down.dgrad(dd, w, ends)
        du, drow_weights = swiglu.dgrad(ds, u, row_weights, ends)
        s = swiglu(u, row_weights, ends)
        """,
        gives="du drow_weights s",
    ),
    _fused(
        "swiglu_down_reorder.dgrad",
        """
        dd = reorder.dgrad(leaving, inverse, order)
        ds = expert_down.dgrad(dd, w, ends)
        du, drow_weights = swiglu.dgrad(ds, u, row_weights, ends)
        s = swiglu(u, row_weights, ends)
        """,
        gives="du drow_weights s",
    ),
    _fused(
        "swiglu_down.dgrad",
        """
        ds = expert_down.dgrad(dd, w, ends)
        du, drow_weights = swiglu.dgrad(ds, u, row_weights, ends)
        s = swiglu(u, row_weights, ends)
        """,
        gives="du drow_weights s",
    ),
    # ---- weight gradients: the gathered operand is read where it lies
    _fused(
        "permute_up.wgrad",
        """
        rows = permute(h, order, slot_row, top_k)
        after = expert_up.wgrad(acc, du, rows, ends)
        """,
        gives="after",
    ),
    _fused(
        "reorder_up.wgrad",
        """
        rows = reorder(arrived, order, inverse)
        after = expert_up.wgrad(acc, du, rows, ends)
        """,
        gives="after",
    ),
    _fused(
        "down_gather.wgrad",
        """
        dd = gather_sum.dgrad(dz, order, top_k)
        after = expert_down.wgrad(acc, dd, s, ends)
        """,
        gives="after",
    ),
    _fused(
        "down_reorder.wgrad",
        """
        dd = reorder.dgrad(leaving, inverse, order)
        after = expert_down.wgrad(acc, dd, s, ends)
        """,
        gives="after",
    ),
)

_EVERY = (*_TABLE, *(_writing(one) for one in _TABLE if one.op.writes))

FUSED: Mapping[str, Fused] = MappingProxyType({one.body: one for one in _EVERY})

OPERATORS: Mapping[str, Op] = MappingProxyType({**OPS, **{one.op.name: one.op for one in _TABLE}})

"""Parameters: physical tensors for kernels, and the logical names by which files know their parts.

Each logical parameter is one contiguous flat range of one physical tensor:

    qkv   [(H + 2G) C, D]    q | k | v
    up    [L, 2F, D]         for each expert: gate | up
    down  [L, D, F]          for each expert: down

so a checkpoint is a set of flat ranges of logical names, whatever the layout that wrote it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from weft.model.families import Kind, Shape


class Residence(StrEnum):
    """Over which ranks a parameter's replicas lie: all of dp x sp, or those that hold the same
    experts.
    """

    DENSE = "dense"
    EXPERT = "edp"


class Init(StrEnum):
    """How a parameter starts."""

    NORMAL = "normal"
    SCALED = "scaled"  # normal, divided by sqrt(2 layers): what writes into the residual stream
    ONES = "ones"
    ZEROS = "zeros"


@dataclass(frozen=True, kw_only=True, slots=True)
class Logical:
    """A named part of a physical parameter: where it starts in it, flat, and its own shape."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One physical tensor of one rank."""

    name: str
    segment: str
    shape: tuple[int, ...]
    parts: tuple[Logical, ...]
    kind: Kind | None = None  # of the layer it belongs to
    residence: Residence = Residence.DENSE
    decays: bool = True
    init: Init = Init.NORMAL

    @property
    def numel(self) -> int:
        return prod(self.shape)


def parameters(shape: Shape, *, ep: int = 1, ep_rank: int = 0) -> tuple[Parameter, ...]:
    """Every physical parameter of one expert-parallel rank, in order of use."""
    local = shape.experts // ep
    experts = range(ep_rank * local, (ep_rank + 1) * local)
    layers = tuple(p for i in range(shape.layers) for p in _layer(shape, i, experts))
    embed = _whole("embed", "embed", (shape.vocab, shape.hidden))
    norm = _norms(shape, "norm", "head")
    head = _whole("head", "head", (shape.vocab, shape.hidden))
    bias = (_bias("head_bias", "head", (shape.vocab,)),) if shape.family.layer_norm else ()
    return (embed, *layers, *norm, *(() if shape.tied else (head,)), *bias)


def _layer(shape: Shape, index: int, experts: range) -> tuple[Parameter, ...]:
    kind = shape.kind(index)
    ffn = {
        Kind.MOE: lambda: _routed(shape, index, experts),
        Kind.WINDOWED_MOE: lambda: _routed(shape, index, experts),
        Kind.LAYER_NORM_MOE: lambda: _routed(shape, index, experts),
        Kind.SHARED_MOE: lambda: (*_routed(shape, index, experts), *_shared(shape, index)),
        Kind.GATED_MOE: lambda: (
            *_routed(shape, index, experts),
            *_shared(shape, index),
            _whole(f"layers.{index}.shared_gate", f"layers.{index}", (1, shape.hidden)),
        ),
        Kind.DENSE: lambda: _pair(shape, index, "dense", shape.dense_ffn_hidden),
    }[kind]()
    return tuple(replace(p, kind=kind) for p in (*_attention(shape, index), *ffn))


def _attention(shape: Shape, index: int) -> tuple[Parameter, ...]:
    at = f"layers.{index}"
    d, c = shape.hidden, shape.head_dim
    rows = (("q", shape.heads * c), ("k", shape.kv_heads * c), ("v", shape.kv_heads * c))
    qkv = Parameter(
        name=f"{at}.qkv",
        segment=at,
        shape=(shape.qkv_columns, d),
        parts=_stack(((f"{at}.{n}", (r, d)) for n, r in rows)),
    )
    out = _whole(f"{at}.out", at, (d, shape.attention_columns), init=Init.SCALED)
    return (
        *_norms(shape, f"{at}.norm1", at),
        qkv,
        *(_qkv_bias(shape, at) if shape.attention_bias else ()),
        *(_qk_norms(shape, at) if shape.qk_norm else ()),
        *(_sinks(shape, at) if shape.family.sinks else ()),
        out,
        *(_out_bias(shape, at) if shape.attention_bias and shape.family.out_bias else ()),
        *_norms(shape, f"{at}.norm2", at),
    )


def _qkv_bias(shape: Shape, at: str) -> Iterable[Parameter]:
    rows = (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads))
    parts = _stack((f"{at}.{n}_bias", (heads * shape.head_dim,)) for n, heads in rows)
    yield _bias(f"{at}.qkv_bias", at, (shape.qkv_columns,), parts)


def _out_bias(shape: Shape, at: str) -> Iterable[Parameter]:
    yield _bias(f"{at}.out_bias", at, (shape.hidden,))


def _sinks(shape: Shape, at: str) -> Iterable[Parameter]:
    yield _whole(f"{at}.sinks", at, (shape.heads,), decays=False)


def _qk_norms(shape: Shape, at: str) -> Iterable[Parameter]:
    """Norms of queries and keys: one weight for every head, or one over all of them."""
    for name, heads in (("q_norm", shape.heads), ("k_norm", shape.kv_heads)):
        if shape.family.wide_qk_norm:
            parts = _stack(((f"{at}.{name}", (heads * shape.head_dim,)),))
            yield replace(
                _norm(f"{at}.wide_{name}", at, heads * shape.head_dim),
                parts=parts,
            )
        else:
            yield _norm(f"{at}.{name}", at, shape.head_dim)


def _routed(shape: Shape, index: int, experts: range) -> tuple[Parameter, ...]:
    at = f"layers.{index}"
    d, f, local = shape.hidden, shape.ffn_hidden, len(experts)
    up = ((f"{at}.experts.{e}.{half}", (f, d)) for e in experts for half in ("gate", "up"))
    down = ((f"{at}.experts.{e}.down", (d, f)) for e in experts)
    family = shape.family
    return (
        _whole(f"{at}.router", at, (shape.experts, d)),
        *((_bias(f"{at}.router_offset", at, (shape.experts,)),) if family.router_offset else ()),
        Parameter(
            name=f"{at}.up",
            segment=at,
            shape=(local, 2 * f, d),
            parts=_stack(up),
            residence=Residence.EXPERT,
        ),
        Parameter(
            name=f"{at}.down",
            segment=at,
            shape=(local, d, f),
            parts=_stack(down),
            residence=Residence.EXPERT,
            init=Init.SCALED,
        ),
        *(_expert_biases(shape, at, experts) if family.expert_bias else ()),
    )


def _expert_biases(shape: Shape, at: str, experts: range) -> Iterable[Parameter]:
    d, f, local = shape.hidden, shape.ffn_hidden, len(experts)
    up = ((f"{at}.experts.{e}.{half}_bias", (f,)) for e in experts for half in ("gate", "up"))
    down = ((f"{at}.experts.{e}.down_bias", (d,)) for e in experts)
    for name, width, parts in (("up_bias", 2 * f, up), ("down_bias", d, down)):
        made = _bias(f"{at}.{name}", at, (local, width), _stack(parts))
        yield replace(made, residence=Residence.EXPERT)


def _shared(shape: Shape, index: int) -> tuple[Parameter, ...]:
    return _pair(shape, index, "shared", shape.shared_hidden)


def _pair(shape: Shape, index: int, name: str, width: int) -> tuple[Parameter, ...]:
    at = f"layers.{index}"
    d = shape.hidden
    halves = ((f"{at}.{name}.{half}", (width, d)) for half in ("gate", "up"))
    up = Parameter(name=f"{at}.{name}_up", segment=at, shape=(2 * width, d), parts=_stack(halves))
    down = Parameter(
        name=f"{at}.{name}_down",
        segment=at,
        shape=(d, width),
        parts=_stack(((f"{at}.{name}.down", (d, width)),)),
        init=Init.SCALED,
    )
    return (up, down)


def _norms(shape: Shape, name: str, segment: str) -> tuple[Parameter, ...]:
    """A norm over the model's width, and its bias where the family's norms have one."""
    norm = _norm(name, segment, shape.hidden)
    if not shape.family.layer_norm:
        return (norm,)
    return (norm, _bias(f"{name}_bias", segment, (shape.hidden,)))


def _norm(name: str, segment: str, size: int) -> Parameter:
    return _whole(name, segment, (size,), decays=False, init=Init.ONES)


def _bias(
    name: str, segment: str, shape: tuple[int, ...], parts: tuple[Logical, ...] = ()
) -> Parameter:
    made = _whole(name, segment, shape, decays=False, init=Init.ZEROS)
    return replace(made, parts=parts or made.parts)


def _whole(
    name: str,
    segment: str,
    shape: tuple[int, ...],
    *,
    decays: bool = True,
    init: Init = Init.NORMAL,
) -> Parameter:
    parts = _stack(((name, shape),))
    return Parameter(name=name, segment=segment, shape=shape, parts=parts, decays=decays, init=init)


def _stack(parts: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[Logical, ...]:
    """Logical parts laid end to end."""
    laid: list[Logical] = []
    for name, shape in parts:
        laid.append(Logical(name=name, start=laid[-1].stop if laid else 0, shape=shape))
    return tuple(laid)

"""Parameters: physical tensors for kernels, and the logical names by which files know their parts.

Each logical parameter, or the rows and columns of it that a rank holds, is one contiguous flat
range of one physical tensor:

    qkv   [(H + 2G) C, D]    q | k | v                    cut by heads: rows of each
    out   [D, H C]                                        cut by heads: columns
    up    [L, 2F, D]         for each expert: gate | up   cut by width: rows of each half
    down  [L, D, F]          for each expert: down        cut by width: columns

A slice of rows is one flat range of its logical parameter, a slice of columns one range a row. So a
checkpoint is a set of flat ranges of logical names, whatever the layout that wrote it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from weft.model.families import Kind, Shape


class Residence(StrEnum):
    """Over which ranks a parameter's replicas lie: all of dp x sp, those that hold the same
    experts, or those that hold the same slice of what is cut over sp.
    """

    DENSE = "dense"
    EXPERT = "edp"
    SLICE = "dp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """One of `degree` equal slices of a dim.

    Example:
        >>> Cut(rank=1, degree=2).of(6)
        range(3, 6)
    """

    rank: int = 0
    degree: int = 1

    def of(self, size: int) -> range:
        """The elements of a dim of that size."""
        share = size // self.degree
        return range(self.rank * share, (self.rank + 1) * share)

    @property
    def residence(self) -> Residence:
        """Where what is cut like this has its replicas."""
        return Residence.SLICE if self.degree > 1 else Residence.DENSE


WHOLE = Cut()


class Init(StrEnum):
    """How a parameter starts."""

    NORMAL = "normal"
    SCALED = "scaled"  # normal, divided by sqrt(2 layers): what writes into the residual stream
    ONES = "ones"
    ZEROS = "zeros"


@dataclass(frozen=True, kw_only=True, slots=True)
class Logical:
    """Rows and columns of a named parameter, and where they start in a physical one, flat.

    `shape` is the whole parameter's; its columns are all dims but the first, flat.
    """

    name: str
    start: int
    shape: tuple[int, ...]
    rows: range
    columns: range

    @property
    def stop(self) -> int:
        return self.start + len(self.rows) * len(self.columns)

    @property
    def label(self) -> str:
        """The name, and behind it the rows and columns where they are not all.

        Example:
            >>> logical("out", (4, 6), columns=range(3, 6)).label
            'out[0:4, 3:6]'
        """
        if self.stop - self.start == prod(self.shape):
            return self.name
        slices = (f"{r.start}:{r.stop}" for r in (self.rows, self.columns))
        return f"{self.name}[{', '.join(slices)}]"

    def runs(self) -> Iterator[range]:
        """The flat ranges of the whole parameter, in the order in which they lie here.

        Example:
            >>> list(logical("out", (2, 6), columns=range(3, 6)).runs())
            [range(3, 6), range(9, 12)]
        """
        width = prod(self.shape[1:])
        if len(self.columns) == width:
            yield range(self.rows.start * width, self.rows.stop * width)
            return
        for row in self.rows:
            yield range(row * width + self.columns.start, row * width + self.columns.stop)


def logical(
    name: str,
    shape: tuple[int, ...],
    *,
    start: int = 0,
    rows: range | None = None,
    columns: range | None = None,
) -> Logical:
    """Rows and columns of a logical parameter, all of them where none are given."""
    return Logical(
        name=name,
        start=start,
        shape=shape,
        rows=range(shape[0]) if rows is None else rows,
        columns=range(prod(shape[1:])) if columns is None else columns,
    )


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


def parameters(
    shape: Shape, *, ep: int = 1, ep_rank: int = 0, attention: Cut = WHOLE, ffn: Cut = WHOLE
) -> tuple[Parameter, ...]:
    """Every physical parameter of one rank, in order of use: its share of the experts, its slice of
    the heads and of the widths of feed-forwards.
    """
    local = shape.experts // ep
    experts = range(ep_rank * local, (ep_rank + 1) * local)
    layers = tuple(
        p for i in range(shape.layers) for p in _layer(shape, i, experts, attention, ffn)
    )
    embed = _whole("embed", "embed", (shape.vocab, shape.hidden))
    norm = _norms(shape, "norm", "head")
    head = _whole("head", "head", (shape.vocab, shape.hidden))
    bias = (_bias("head_bias", "head", (shape.vocab,)),) if shape.family.layer_norm else ()
    return (embed, *layers, *norm, *(() if shape.tied else (head,)), *bias)


def _layer(
    shape: Shape, index: int, experts: range, attention: Cut, ffn: Cut
) -> tuple[Parameter, ...]:
    kind = shape.kind(index)
    feed_forward = {
        Kind.MOE: lambda: _routed(shape, index, experts, ffn),
        Kind.WINDOWED_MOE: lambda: _routed(shape, index, experts, ffn),
        Kind.LAYER_NORM_MOE: lambda: _routed(shape, index, experts, ffn),
        Kind.SHARED_MOE: lambda: (
            *_routed(shape, index, experts, ffn),
            *_pair(shape, index, "shared", shape.shared_hidden, ffn),
        ),
        Kind.GATED_MOE: lambda: (
            *_routed(shape, index, experts, ffn),
            *_pair(shape, index, "shared", shape.shared_hidden, ffn),
            _whole(f"layers.{index}.shared_gate", f"layers.{index}", (1, shape.hidden)),
        ),
        Kind.DENSE: lambda: _pair(shape, index, "dense", shape.dense_ffn_hidden, ffn),
    }[kind]()
    return tuple(
        replace(p, kind=kind) for p in (*_attention(shape, index, attention), *feed_forward)
    )


def _attention(shape: Shape, index: int, cut: Cut) -> tuple[Parameter, ...]:
    at = f"layers.{index}"
    d = shape.hidden
    columns = shape.attention_columns
    out = Parameter(
        name=f"{at}.out",
        segment=at,
        shape=(d, columns // cut.degree),
        parts=(logical(f"{at}.out", (d, columns), columns=cut.of(columns)),),
        residence=cut.residence,
        init=Init.SCALED,
    )
    return (
        *_norms(shape, f"{at}.norm1", at),
        *_projections(shape, at, cut),
        *(_qkv_bias(shape, at, cut) if shape.attention_bias else ()),
        *(_qk_norms(shape, at) if shape.qk_norm else ()),
        *(_sinks(shape, at) if shape.family.sinks else ()),
        out,
        *(_out_bias(shape, at) if shape.attention_bias and shape.family.out_bias else ()),
        *_norms(shape, f"{at}.norm2", at),
    )


def _qkv_bias(shape: Shape, at: str, cut: Cut) -> Iterable[Parameter]:
    sizes = (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads))
    sizes = tuple((name, heads * shape.head_dim) for name, heads in sizes)
    parts = _stack(logical(f"{at}.{n}_bias", (size,), rows=cut.of(size)) for n, size in sizes)
    yield Parameter(
        name=f"{at}.qkv_bias",
        segment=at,
        shape=(parts[-1].stop,),
        parts=parts,
        residence=cut.residence,
        decays=False,
        init=Init.ZEROS,
    )


def _out_bias(shape: Shape, at: str) -> Iterable[Parameter]:
    yield _bias(f"{at}.out_bias", at, (shape.hidden,))


def _sinks(shape: Shape, at: str) -> Iterable[Parameter]:
    yield _whole(f"{at}.sinks", at, (shape.heads,), decays=False)


def _qk_norms(shape: Shape, at: str) -> Iterable[Parameter]:
    """Norms of queries and keys: one weight for every head, or one over all of them."""
    for name, heads in (("q_norm", shape.heads), ("k_norm", shape.kv_heads)):
        if shape.family.wide_qk_norm:
            columns = heads * shape.head_dim
            yield replace(
                _norm(f"{at}.wide_{name}", at, columns),
                parts=(logical(f"{at}.{name}", (columns,)),),
            )
        else:
            yield _norm(f"{at}.{name}", at, shape.head_dim)


def _projections(shape: Shape, at: str, cut: Cut) -> tuple[Parameter, ...]:
    """Queries, keys and values in one; where ranks share a key/value head, keys and values apart
    and whole on all of them.
    """
    d, c = shape.hidden, shape.head_dim
    queries = logical(f"{at}.q", (shape.heads * c, d), rows=cut.of(shape.heads * c))
    kv_rows = shape.kv_heads * c
    if cut.degree <= shape.kv_heads:
        kv = [logical(f"{at}.{n}", (kv_rows, d), rows=cut.of(kv_rows)) for n in ("k", "v")]
        rows = shape.qkv_columns // cut.degree
        parts = _stack((queries, *kv))
        return (
            Parameter(
                name=f"{at}.qkv", segment=at, shape=(rows, d), parts=parts, residence=cut.residence
            ),
        )
    both = _stack(logical(f"{at}.{n}", (kv_rows, d)) for n in ("k", "v"))
    return (
        Parameter(
            name=f"{at}.q",
            segment=at,
            shape=(len(queries.rows), d),
            parts=(queries,),
            residence=cut.residence,
        ),
        Parameter(name=f"{at}.kv", segment=at, shape=(2, shape.kv_heads, c, d), parts=both),
    )


def _routed(shape: Shape, index: int, experts: range, cut: Cut) -> tuple[Parameter, ...]:
    at = f"layers.{index}"
    d, f, local = shape.hidden, shape.ffn_hidden, len(experts)
    width = cut.of(f)
    up = (
        logical(f"{at}.experts.{e}.{half}", (f, d), rows=width)
        for e in experts
        for half in ("gate", "up")
    )
    down = (logical(f"{at}.experts.{e}.down", (d, f), columns=width) for e in experts)
    residence = Residence.SLICE if cut.degree > 1 else Residence.EXPERT
    family = shape.family
    return (
        _whole(f"{at}.router", at, (shape.experts, d)),
        *((_bias(f"{at}.router_offset", at, (shape.experts,)),) if family.router_offset else ()),
        Parameter(
            name=f"{at}.up",
            segment=at,
            shape=(local, 2 * len(width), d),
            parts=_stack(up),
            residence=residence,
        ),
        Parameter(
            name=f"{at}.down",
            segment=at,
            shape=(local, d, len(width)),
            parts=_stack(down),
            residence=residence,
            init=Init.SCALED,
        ),
        *(_expert_biases(shape, at, experts) if family.expert_bias else ()),
    )


def _expert_biases(shape: Shape, at: str, experts: range) -> Iterable[Parameter]:
    d, f, local = shape.hidden, shape.ffn_hidden, len(experts)
    up = (
        logical(f"{at}.experts.{e}.{half}_bias", (f,)) for e in experts for half in ("gate", "up")
    )
    down = (logical(f"{at}.experts.{e}.down_bias", (d,)) for e in experts)
    for name, width, parts in (("up_bias", 2 * f, up), ("down_bias", d, down)):
        made = _bias(f"{at}.{name}", at, (local, width), _stack(parts))
        yield replace(made, residence=Residence.EXPERT)


def _pair(shape: Shape, index: int, name: str, width: int, cut: Cut) -> tuple[Parameter, ...]:
    at = f"layers.{index}"
    d, mine = shape.hidden, cut.of(width)
    halves = (logical(f"{at}.{name}.{half}", (width, d), rows=mine) for half in ("gate", "up"))
    up = Parameter(
        name=f"{at}.{name}_up",
        segment=at,
        shape=(2 * len(mine), d),
        parts=_stack(halves),
        residence=cut.residence,
    )
    down = Parameter(
        name=f"{at}.{name}_down",
        segment=at,
        shape=(d, len(mine)),
        parts=(logical(f"{at}.{name}.down", (d, width), columns=mine),),
        residence=cut.residence,
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
    parts = (logical(name, shape),)
    return Parameter(name=name, segment=segment, shape=shape, parts=parts, decays=decays, init=init)


def _stack(parts: Iterable[Logical]) -> tuple[Logical, ...]:
    """Logical parts laid end to end."""
    laid: list[Logical] = []
    for part in parts:
        laid.append(replace(part, start=laid[-1].stop if laid else 0))
    return tuple(laid)

"""How many parameters a model has, how many a token uses, and what a token costs in FLOPs.

    FLOPs a token = 6 N + 6 L A s        (forward and backward; paper, section 6.1)

`N` counts the parameters that a token is multiplied by: all but the input embedding, with `top_k`
of the routed experts; two FLOPs a parameter forward, four backward. The second term is attention:
scores and weighted sum are 2 x 2 A FLOPs for each of s/2 causal positions on average (`A` is
`heads head_dim`, which is `hidden` in the paper's models), times three for forward and backward,
times `L` layers.

Biases that only steer the router's selection are state, not parameters, and are left out.
"""

from dataclasses import dataclass, replace

from weft.model.families import Kind, Shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """Parameters by part of the model."""

    embedding: int
    attention: int
    norm: int
    router: int
    routed: int
    shared: int
    dense: int
    head: int

    @property
    def all(self) -> int:
        """The sum of the parts."""
        layers = self.attention + self.norm + self.router + self.routed + self.shared + self.dense
        return self.embedding + layers + self.head


def total(shape: Shape) -> Count:
    """Every parameter of a model; a head tied to the embedding is counted there.

    Example:
        >>> total(_MIXTRAL_8X7B).all
        46702792704
    """
    return _count(shape, experts=shape.experts)


def active(shape: Shape) -> Count:
    """The parameters that one token visits, the embedding counted whole, as releases count them.

    Example:
        >>> active(_MIXTRAL_8X7B).all
        12879925248
    """
    return _count(shape, experts=shape.top_k)


def multiplied(shape: Shape) -> int:
    """The parameters that one token is multiplied by: the active ones without the embedding."""
    count = active(shape)
    head = shape.vocab * shape.hidden
    return count.all - count.embedding - count.head + head


def attention_flops(shape: Shape, *, sequence: int) -> int:
    """The FLOPs of one token in scores and weighted sums of causal attention, both directions."""
    return 6 * shape.layers * shape.attention_columns * sequence


def token_flops(shape: Shape, *, sequence: int) -> int:
    """The FLOPs of one token in a sequence of that length, forward and backward.

    Example:
        >>> round(token_flops(_MIXTRAL_8X7B, sequence=8192) / 1e9, 1)
        82.9

    Paper: section 6.1.
    """
    return 6 * multiplied(shape) + attention_flops(shape, sequence=sequence)


def layer_flops(shape: Shape, layer: int, *, sequence: int) -> int:
    """The FLOPs of one token in one layer, both directions.

    Example:
        >>> layers = sum(layer_flops(_MIXTRAL_8X7B, i, sequence=8192) for i in range(32))
        >>> layers + head_flops(_MIXTRAL_8X7B) == token_flops(_MIXTRAL_8X7B, sequence=8192)
        True
    """
    kind = shape.kind(layer)
    alone = replace(shape, layers=1, dense_layers=int(kind is Kind.DENSE))
    count = active(alone)
    multiplied_here = count.all - count.embedding - count.head - shape.hidden  # the final norm
    return 6 * multiplied_here + attention_flops(alone, sequence=sequence)


def head_flops(shape: Shape) -> int:
    """The FLOPs of one token in the final norm and the head, both directions."""
    return 6 * (shape.hidden + shape.vocab * shape.hidden)


def _count(shape: Shape, *, experts: int) -> Count:
    """The parts of a model of which a layer's routed experts are so many."""
    kinds = [shape.kind(layer) for layer in range(shape.layers)]
    dense, moe = kinds.count(Kind.DENSE), len(kinds) - kinds.count(Kind.DENSE)
    qkv = shape.qkv_columns * (shape.hidden + shape.attention_bias)
    norms = 2 * _norm(shape) + (_qk_norms(shape) if shape.qk_norm else 0)
    table = shape.vocab * shape.hidden
    return Count(
        embedding=table,
        attention=shape.layers * (qkv + shape.attention_columns * shape.hidden + _extra(shape)),
        norm=shape.layers * norms + _norm(shape),
        router=moe * shape.experts * (shape.hidden + shape.family.router_offset),
        routed=moe * experts * (_feed_forward(shape, shape.ffn_hidden) + _expert_bias(shape)),
        shared=moe * (_feed_forward(shape, shape.shared_hidden) + _gate(shape)),
        dense=dense * _feed_forward(shape, shape.dense_ffn_hidden),
        head=(0 if shape.tied else table) + (shape.vocab if shape.family.layer_norm else 0),
    )


def _norm(shape: Shape) -> int:
    return shape.hidden * (2 if shape.family.layer_norm else 1)


def _qk_norms(shape: Shape) -> int:
    """The weights of both norms: of one head each, or of all heads."""
    heads = shape.heads + shape.kv_heads if shape.family.wide_qk_norm else 2
    return heads * shape.head_dim


def _extra(shape: Shape) -> int:
    """The bias of the output of attention, and its sinks."""
    family = shape.family
    out = shape.hidden if shape.attention_bias and family.out_bias else 0
    return out + (shape.heads if family.sinks else 0)


def _expert_bias(shape: Shape) -> int:
    return (2 * shape.ffn_hidden + shape.hidden) if shape.family.expert_bias else 0


def _gate(shape: Shape) -> int:
    return shape.hidden if shape.family.shared_gate and shape.shared_experts else 0


def _feed_forward(shape: Shape, width: int) -> int:
    """A gated feed-forward: gate, up and down."""
    return 3 * shape.hidden * width


_MIXTRAL_8X7B = Shape(
    vocab=32000,
    hidden=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn_hidden=14336,
    experts=8,
    top_k=2,
    shared_experts=0,
    dense_layers=0,
    dense_ffn_hidden=0,
    qk_norm=False,
    tied=False,
    init_std=0.02,
)

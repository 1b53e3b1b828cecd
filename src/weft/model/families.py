"""Families by declaration: which layer function each depth uses, and which operators fill it.

What all members of a family share is a `Family`; what differs between its models is a number of the
`Shape`. The lowering reads both and picks operators; no layer function asks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from weft.model.layer import (
    dense_layer,
    gated_moe_layer,
    layer_norm_moe_layer,
    moe_layer,
    shared_moe_layer,
    windowed_moe_layer,
)


class Kind(StrEnum):
    """Which straight-line function a layer is."""

    MOE = "moe"
    SHARED_MOE = "shared_moe"
    GATED_MOE = "gated_moe"
    LAYER_NORM_MOE = "layer_norm_moe"
    WINDOWED_MOE = "windowed_moe"
    DENSE = "dense"


LAYERS: Mapping[Kind, Callable[..., Any]] = MappingProxyType(
    {
        Kind.MOE: moe_layer,
        Kind.SHARED_MOE: shared_moe_layer,
        Kind.GATED_MOE: gated_moe_layer,
        Kind.LAYER_NORM_MOE: layer_norm_moe_layer,
        Kind.WINDOWED_MOE: windowed_moe_layer,
        Kind.DENSE: dense_layer,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What the layers of a family have that those of Mixtral have not."""

    wide_qk_norm: bool = False  # where queries and keys are normed: over all heads together
    shared_gate: bool = False  # the shared expert is weighed by a sigmoid of its own
    out_bias: bool = False  # where attention has biases, its output has one too
    sinks: bool = False  # each head has a score that no key owns
    router_offset: bool = False  # the router has a bias that is learned
    expert_bias: bool = False  # both products of an expert have a bias
    layer_norm: bool = False  # norms take the mean off and have a bias, and the head has one too
    sparsemixer: bool = False  # each of two choices has a softmax of its own
    clamped: bool = False  # gate and up of an expert are clamped, and up is 1 more


COMMON = Family()

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "mixtral": COMMON,
        "qwen3_moe": COMMON,
        "deepseek_moe": COMMON,
        "qwen2_moe": Family(shared_gate=True),
        "olmoe": Family(wide_qk_norm=True),
        "glm4_moe": COMMON,
        "phimoe": Family(out_bias=True, layer_norm=True, sparsemixer=True),
        "gpt_oss": Family(
            out_bias=True, sinks=True, router_offset=True, expert_bias=True, clamped=True
        ),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The numbers of one model that the score needs, free of any configuration library."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_hidden: int
    experts: int
    top_k: int
    shared_experts: int
    dense_layers: int
    dense_ffn_hidden: int
    qk_norm: bool
    tied: bool
    init_std: float
    family: Family = COMMON
    attention_bias: bool = False
    shared_ffn_hidden: int = 0
    dense_at: tuple[int, ...] = ()
    rotary_dim: int = 0
    groups: int = 1
    top_groups: int = 1
    window: int = 0
    windowed: tuple[int, ...] = ()

    @property
    def qkv_columns(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def attention_columns(self) -> int:
        return self.heads * self.head_dim

    @property
    def shared_hidden(self) -> int:
        return self.shared_ffn_hidden or self.shared_experts * self.ffn_hidden

    @property
    def rotated(self) -> int:
        """The channels of a head that are rotated."""
        return self.rotary_dim or self.head_dim

    @property
    def selection(self) -> str:
        """The operator that chooses a token's experts."""
        if self.family.sparsemixer:
            return "select_sparsemixer"
        return "select_grouped_experts" if self.groups > 1 else "select_experts"

    @property
    def replay(self) -> str:
        """The operator that takes a token's experts as given."""
        return "replay_sparsemixer" if self.family.sparsemixer else "replay_experts"

    @property
    def rotation(self) -> str:
        """The operator that makes queries, keys and values of the projection."""
        if not self.qk_norm:
            return "rotate"
        return "wide_norm_rotate" if self.family.wide_qk_norm else "norm_rotate"

    def kind(self, layer: int) -> Kind:
        """Which function a layer is: dense ones lead, or stand where the model says."""
        if layer < self.dense_layers or layer in self.dense_at:
            return Kind.DENSE
        if self.family.layer_norm:
            return Kind.LAYER_NORM_MOE
        if layer in self.windowed:
            return Kind.WINDOWED_MOE
        if not self.shared_experts:
            return Kind.MOE
        return Kind.GATED_MOE if self.family.shared_gate else Kind.SHARED_MOE

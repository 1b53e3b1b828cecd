"""Families by declaration: which layer function each depth uses, and whether heads are normed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from weft.model.layer import dense_layer, moe_layer, shared_moe_layer


class Kind(StrEnum):
    """Which straight-line function a layer is."""

    MOE = "moe"
    SHARED_MOE = "shared_moe"
    DENSE = "dense"


LAYERS: Mapping[Kind, Callable[..., Any]] = MappingProxyType(
    {Kind.MOE: moe_layer, Kind.SHARED_MOE: shared_moe_layer, Kind.DENSE: dense_layer}
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

    @property
    def qkv_columns(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def attention_columns(self) -> int:
        return self.heads * self.head_dim

    @property
    def shared_hidden(self) -> int:
        return self.shared_experts * self.ffn_hidden

    def kind(self, layer: int) -> Kind:
        """Which function a layer is: dense ones lead, shared experts stand beside routed ones."""
        if layer < self.dense_layers:
            return Kind.DENSE
        return Kind.SHARED_MOE if self.shared_experts else Kind.MOE

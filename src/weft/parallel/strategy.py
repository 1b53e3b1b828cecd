"""What a way of spreading a layer has to say, for attention and for the feed-forward.

The layer is written once; the lowering asks one strategy of each sort, chosen once from the layout,
for the operators behind its lines. A strategy calls operators of an algebra `o` and knows no
device, no rank but its own numbers, and no other strategy.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, final

Renames = Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Projected:
    """What leaves the QKV projection on one rank: its tokens, its heads, their letters, and the
    letters of the weights around attention.
    """

    heads: int
    kv_heads: int
    tokens: str = "T"
    columns: str = "Q"
    renames: Renames = field(default_factory=lambda: MappingProxyType({}))
    weights: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class AttentionStrategy(ABC):
    """How attention is spread over the ranks that share a micro-batch."""

    @property
    @abstractmethod
    def projected(self) -> Projected:
        """What each rank has between the QKV projection and the exchange before attention."""

    @abstractmethod
    def project_qkv(self, o: Any, h: Any, w: Any) -> Any:
        """Normed tokens [T, D] to queries, keys and values, still side by side."""

    @abstractmethod
    def seq_to_heads(self, o: Any, q: Any, k: Any, v: Any) -> Any:
        """What this rank attends with."""

    @abstractmethod
    def attend(self, o: Any, q: Any, k: Any, v: Any, segments: Any) -> Any:
        """Attention itself."""

    @abstractmethod
    def heads_to_seq(self, o: Any, a: Any) -> Any:
        """What this rank projects."""

    @abstractmethod
    def project(self, o: Any, a: Any, w: Any) -> Any:
        """The output projection, with this rank's tokens [T, D] as its result."""


class ExpertStrategy(ABC):
    """How routed experts are spread over ranks."""

    @abstractmethod
    def dispatch(self, o: Any, h: Any, weights: Any, experts: Any) -> Any:
        """The rows of this rank's experts, with their gate weights, ends and the way back."""

    @abstractmethod
    def combine(self, o: Any, d: Any, e: Any) -> Any:
        """This rank's tokens [T, D], each the sum of its rows."""


class DenseStrategy(ABC):
    """How a feed-forward that every token visits is spread over ranks."""

    @property
    @abstractmethod
    def renames(self) -> Renames:
        """The letter of the tokens that it works on."""

    @abstractmethod
    def enter(self, o: Any, h: Any) -> Any:
        """Those tokens."""

    @abstractmethod
    def leave(self, o: Any, y: Any) -> Any:
        """This rank's tokens [T, D] of what it gives."""


@final
class InPlace(DenseStrategy):
    """Weights are on every rank, tokens stay where they are."""

    @property
    def renames(self) -> Renames:
        return MappingProxyType({})

    def enter(self, o: Any, h: Any) -> Any:  # noqa: ARG002 - as others do
        return h

    def leave(self, o: Any, y: Any) -> Any:  # noqa: ARG002 - as others do
        return y


def project_here(o: Any, h: Any, w: Any) -> Any:
    """Queries, keys and values of this rank's tokens, by replicated weights."""
    (qkv,) = o.call("qkv_project", h, w.qkv)
    return qkv


def attend_all(o: Any, q: Any, k: Any, v: Any, segments: Any) -> Any:
    """Every query of the micro-batch, for the heads that are here."""
    a, _ = o.call("attention", q, k, v, segments)
    return a


def project_out(o: Any, a: Any, w: Any) -> Any:
    """The output projection of this rank's tokens, by a replicated weight."""
    (y,) = o.call("project", a, w)
    return y

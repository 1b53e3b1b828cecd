"""The plain reference of an encoded wire: one rank that rounds where a layout's wire would.

    o.call     one rank's operators, at once, under autograd
    permute    what a dispatch brings: rounded forward, its gradient rounded backward
    gather_sum what a combine brings: rounded forward, its gradient rounded backward

No program is recorded, no collective called, no packet packed, no backward derived. From the layout
it takes only who holds which tokens and which experts, since a scale by channel is shared by rows
that travel together; the numbers of a rounding are those of `ops.fp8.quantise`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from weft.compose.plan import Crossings, Plan, is_all_gather
from weft.ops.fp8 import dequantise, quantise
from weft.parallel.share import share_of

GROUP = 128  # tokens that share the scale of a channel (paper 4.2)

Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Which rank of the group a token is on, and which one an expert."""

    source: Tensor  # of each token of a micro-batch, in the order of the stream
    experts: int
    ep: int

    def sources(self) -> Iterator[Tensor]:
        """The tokens of each rank."""
        return (self.source == rank for rank in self.source.unique())


class Quantising:
    """The algebra of one rank that rounds what a layout's wire would; see the module."""

    def __init__(self, bodies: Mapping[str, Callable[..., Any]], plan: Plan) -> None:
        self.bodies = bodies
        self.said = plan.crossings if plan.layout.ep > 1 else Crossings()  # else nothing crosses
        self.gathers = is_all_gather(plan.layout)
        self.places = Places(source=_source(plan), experts=plan.local_experts, ep=plan.layout.ep)
        self.chosen = torch.empty(0)
        self.row_weights = torch.empty(0)

    def call(
        self,
        op: str,
        *inputs: Any,
        renames: Mapping[str, str] = MappingProxyType({}),  # noqa: ARG002 - names of dims only
        **attributes: Any,
    ) -> tuple[Any, ...]:
        """The outputs of one operator, computed now."""
        body = self.bodies[op]
        match op:
            case "plan_rows" | "plan_local":  # the latter where choices are dropped
                self.chosen = inputs[0]
            case "permute":
                return (self._dispatched(inputs[0], inputs[1], attributes["top_k"]),)
            case "gather_sum":
                return (self._combined(inputs[0], inputs[2], attributes["top_k"]),)
            case "swiglu" if self.said.encodes:
                u, self.row_weights, _ = inputs
                return (self.bodies["dense_swiglu"](u),)
            case "clamped_swiglu" if self.said.encodes:
                u, self.row_weights = inputs
                return (self.bodies["clamped_glu"](u, **attributes),)
            case "expert_down" if self.said.encodes:
                made = body(*inputs, **attributes)
                return (made * self.row_weights.unsqueeze(-1).to(made.dtype),)
            case _:
                pass
        made = body(*inputs, **attributes)
        return made if isinstance(made, tuple) else (made,)

    # ---- the two crossings -----------------------------------------------------------------------

    def _dispatched(self, h: Tensor, order: Tensor, top_k: int) -> Tensor:
        forward, backward = self._forward("dispatch"), self._backward("dispatch_grad")
        if not self.gathers:
            rows = h[order // top_k]
            return _cross(rows, forward, self._by_pair(order, top_k, backward))
        gone = (_cross(h, forward, self._by_source(backward)) for _ in range(self.places.ep))
        return torch.stack([*gone])[self._holder(order), order // top_k]

    def _combined(self, rows: Tensor, order: Tensor, top_k: int) -> Tensor:
        forward, backward = self._forward("combine"), self._backward("combine_grad")
        if not self.gathers:
            rows = _cross(rows, forward, self._by_pair(order, top_k, backward))
            return self._summed(rows, order, top_k)
        holder, total = self._holder(order), self._summed(rows[:0], order[:0], top_k)
        for rank in range(self.places.ep):
            here = holder == rank
            partial = self._summed(rows[here], order[here], top_k)
            total = total + _cross(partial, forward, _as_it_is)
        return _cross(total, _as_it_is, self._by_source(backward))

    def _summed(self, rows: Tensor, order: Tensor, top_k: int) -> Tensor:
        """Each token's sum over these rows."""
        total = rows.new_zeros(len(self.places.source), rows.shape[1])
        return total.index_add(0, order // top_k, rows)

    def _holder(self, order: Tensor) -> Tensor:
        """The rank that holds the expert of each row."""
        return self.chosen.flatten()[order] // self.places.experts

    def _by_source(self, rounding: Rounding) -> Rounding:
        """A rounding of the tokens of each rank by themselves."""

        def rounded(x: Tensor) -> Tensor:
            out = x.clone()
            for share in self.places.sources():
                out[share] = rounding(x[share])
            return out

        return rounded

    def _by_pair(self, order: Tensor, top_k: int, rounding: Rounding) -> Rounding:
        """A rounding of the rows between each two ranks by themselves."""
        pair = self.places.source[order // top_k] * self.places.ep + self._holder(order)

        def rounded(x: Tensor) -> Tensor:
            out = x.clone()
            for one in pair.unique():
                out[pair == one] = rounding(x[pair == one])
            return out

        return rounded

    # ---- roundings -------------------------------------------------------------------------------

    def _forward(self, crossing: str) -> Rounding:
        return self._by_row if getattr(self.said, crossing) == "fp8" else _as_it_is

    def _backward(self, crossing: str) -> Rounding:
        if getattr(self.said, crossing) == "none":
            return _as_it_is
        return _by_channel if self.said.scales == "token" else self._by_row

    def _by_row(self, x: Tensor) -> Tensor:
        columns = x.shape[1] if self.said.scales == "token" else GROUP
        return torch.cat([_rounded(part, 1) for part in x.split(columns, 1)], 1)


def _source(plan: Plan) -> Tensor:
    """Which rank of the sequence-parallel group each token of a micro-batch is on."""
    source = torch.empty(plan.tokens, dtype=torch.int64)
    for rank in range(plan.layout.sp):
        own = share_of(plan.layout, rank, sequences=plan.micro_batch, sequence=plan.sequence).tokens
        for tokens in own:
            source[tokens.start : tokens.stop] = rank
    return source


class _Cross(torch.autograd.Function):
    """One function of a value on its way there and another of its gradient on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Rounding, back: Rounding) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grads[0]), None, None


def _cross(x: Tensor, there: Rounding, back: Rounding) -> Tensor:
    return _Cross.apply(x, there, back)


def _by_channel(x: Tensor) -> Tensor:
    return torch.cat([_rounded(part, 0) for part in x.split(GROUP)]) if len(x) else x


def _rounded(x: Tensor, dim: int) -> Tensor:
    return dequantise(*quantise(x, dim), x.dtype)


def _as_it_is(x: Tensor) -> Tensor:
    return x

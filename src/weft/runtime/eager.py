"""The oracle: the layer computed at once, under torch autograd, on one rank.

It shares the layer text and the forward bodies with everything else and nothing more: no recorder,
no derived backward, no order, no executor. What the explicit path must equal is what autograd makes
of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from weft.compose.lower import Context, Lowering
from weft.compose.plan import Plan
from weft.compose.segment import short
from weft.model import lm
from weft.model.families import LAYERS
from weft.model.params import Parameter, parameters
from weft.runtime.batch import Batch

Bodies = Mapping[str, Callable[..., Any]]


class Immediate:
    """The algebra that computes: `call` runs the forward body."""

    def __init__(self, bodies: Bodies) -> None:
        self.bodies = bodies

    def call(
        self,
        op: str,
        *inputs: Any,
        renames: Mapping[str, str] = MappingProxyType({}),  # noqa: ARG002 - names of dims only
        **attributes: Any,
    ) -> tuple[Any, ...]:
        """The outputs of one operator, computed now."""
        made = self.bodies[op](*inputs, **attributes)
        return made if isinstance(made, tuple) else (made,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Oracle:
    """One model on one rank: its plan, the forward bodies, and its physical parameters (and biases)
    by name.
    """

    plan: Plan
    bodies: Bodies
    weights: Mapping[str, Tensor]
    algebra: Callable[[Bodies], Any] = Immediate

    def losses(self, batch: Batch, divisor: float) -> Tensor:
        """The losses [cross-entropy, balance, z] of one micro-batch, differentiable by autograd."""
        x, sums = self._hidden(batch)
        loss = torch.zeros(1, dtype=sums.dtype, device=x.device)
        lowering = self._over(Context(divisor=divisor, loss=loss))
        return torch.cat((self._text.loss(lowering, x, batch.targets, self._head()), sums))

    def logits(self, batch: Batch) -> Tensor:
        """Logits of every token. Shapes: [N, V]."""
        x, _ = self._hidden(batch)
        return self._text.logits(self._over(Context()), x, self._head())

    def _hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        embed = SimpleNamespace(embed=self.weights["embed"])
        x, cos, sin = lm.embedding(self._over(Context()), batch.tokens, batch.positions, embed)
        shape = self.plan.shape
        losses = torch.zeros(2, dtype=cos.dtype, device=x.device)
        for i in range(shape.layers):
            context = Context(
                cos=cos,
                sin=sin,
                segments=batch.segments,
                losses=losses,
                tally=torch.zeros(shape.experts, dtype=cos.dtype, device=x.device),
                dropped=torch.zeros(1, dtype=cos.dtype, device=x.device),
                overflow=torch.zeros(1, dtype=cos.dtype, device=x.device),
                bias=self.weights[f"layers.{i}.router_bias"],
                past=self.weights[f"layers.{i}.past_load"],
            )
            lowering = self._over(context)
            x = LAYERS[shape.kind(i)](lowering, x, self._layer(i))
            losses = lowering.losses
        return x, losses

    def _over(self, context: Context) -> Lowering:
        return Lowering(self.algebra(self.bodies), self.plan, context)

    @property
    def _text(self) -> lm.Head:
        return lm.HEADS[self.plan.shape.family.layer_norm]

    def _head(self) -> SimpleNamespace:
        own = {name: self.weights[name] for name in self._text.weights}
        table = self.weights["embed" if self.plan.shape.tied else "head"]
        return SimpleNamespace(**own, head=table)

    def _layer(self, index: int) -> SimpleNamespace:
        at = f"layers.{index}"
        owned: list[Parameter] = [p for p in parameters(self.plan.shape) if p.segment == at]
        return SimpleNamespace(**{short(p): self.weights[p.name] for p in owned})

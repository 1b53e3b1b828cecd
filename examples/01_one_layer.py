"""One function, three readings: the text of a layer, its program on four ranks, its value on one.

A layer of weft is a straight line over an algebra `o`. What `o` is decides what comes of it: a
`Recorder` writes down a program, `Immediate` computes. Nothing in the layer knows which.

    python examples/01_one_layer.py
"""

import inspect
from types import SimpleNamespace

import torch
from torch import Tensor

from weft.compose import segment
from weft.compose.lower import Context, Lowering
from weft.graph.render import render_program
from weft.model.families import Kind
from weft.model.layer import moe_layer
from weft.model.params import parameters
from weft.ops.attention import segments
from weft.ops.registry import reference_bodies
from weft.ops.rope import rope_table
from weft.parallel.layout import Layout
from weft.runtime.eager import Immediate
from weft.testing import models

MODEL = models.mixtral_like()  # 8 experts of which a token visits 2, 4 query heads, 28 wide
TOKENS = models.SEQUENCE * models.MICRO_BATCH


def read_as_program(layout: Layout) -> str:
    """What one rank of a layout does: the collectives are in it, and every size has a letter."""
    owned = [p for p in parameters(MODEL.shape, ep=layout.ep) if p.segment == "layers.0"]
    names = [segment.short(parameter) for parameter in owned]
    plan = models.plan(MODEL, layout)
    return render_program(segment.layer(plan, Kind.MOE, names).forward)


def read_as_value(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The layer of these tokens, now, on this machine."""
    shape, numbers = MODEL.shape, MODEL.arithmetic
    cos, sin = rope_table(
        torch.arange(TOKENS), theta=numbers.rope_theta, head_dim=shape.head_dim, dtype="float32"
    )
    context = Context(
        cos=cos,
        sin=sin,
        segments=segments((TOKENS,), x.device),  # one document
        losses=torch.zeros(2),
        tally=torch.zeros(shape.experts),
        bias=torch.zeros(shape.experts),
        past=torch.zeros(shape.experts),
    )
    plan = models.plan(MODEL, precision="float32")
    algebra = Lowering(Immediate(reference_bodies()), plan, context)
    return moe_layer(algebra, x, SimpleNamespace(**weights))


if __name__ == "__main__":
    print("---- the text\n")
    print(inspect.getsource(moe_layer))

    print("---- the program of one of four ranks that share the tokens and the experts\n")
    print(read_as_program(Layout(sp=4, ep=4)))

    torch.manual_seed(0)
    owned = [p for p in parameters(MODEL.shape) if p.segment == "layers.0"]
    weights = {segment.short(p): 0.1 * torch.randn(p.shape) for p in owned}
    x = torch.randn(TOKENS, MODEL.shape.hidden, requires_grad=True)
    y = read_as_value(x, weights)
    (gradient,) = torch.autograd.grad(y.square().mean(), x)
    print("\n---- the value on one rank, and autograd through it\n")
    print(f"  {list(x.shape)} -> {list(y.shape)}, norm {y.norm():.3f}")
    print(f"  gradient of its mean square: norm {gradient.norm():.4f}")

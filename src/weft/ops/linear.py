"""Linear maps: embedding, the projections, the router's logits, the residual sum.

The weight gradient of each is one product added into its accumulator. The embedding's is a sum of
gradient rows by token: sorted by token and summed segment by segment in ascending position, because
a scattered add on a GPU is an atomic, whose order is not fixed. `embed_wgrad_cpu` is the same sum
in the same order without the sort: `index_add_` on a CPU walks its rows one by one, whatever the
number of threads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.ops.precision import accumulation_dtype, add_narrow_product, add_product


def embed(tokens: Tensor, w: Tensor) -> Tensor:
    """Returns the row of `w` that each token names."""
    return F.embedding(tokens, w)


def embed_wgrad(acc: Tensor, dx: Tensor, tokens: Tensor) -> Tensor:
    """Adds to each token's row of `acc` the gradients of its positions, in ascending position.

    Numerics:
        One fixed-order sum a token in the dtype of `acc`; a table of the size of `acc` is its
        temporary.
    """
    ordered, order = torch.sort(tokens, stable=True)
    edges = torch.searchsorted(ordered, torch.arange(acc.shape[0] + 1, device=tokens.device))
    rows = dx.index_select(0, order).to(acc.dtype)
    return acc.add_(torch.segment_reduce(rows, "sum", offsets=edges, initial=0))


def embed_wgrad_cpu(acc: Tensor, dx: Tensor, tokens: Tensor) -> Tensor:
    """Adds what `embed_wgrad` adds, touching only the rows that occur."""
    return acc.index_add_(0, tokens, dx.to(acc.dtype))


def project(x: Tensor, w: Tensor) -> Tensor:
    """Returns `x @ w.T`."""
    return F.linear(x, w)


def project_dgrad(dy: Tensor, w: Tensor) -> Tensor:
    """Returns the gradient of the input of `project`."""
    return dy @ w


def project_wgrad(acc: Tensor, dy: Tensor, x: Tensor) -> Tensor:
    """Adds the gradient of the weight of `project` into `acc`."""
    return add_product(acc, dy, x)


def project_wgrad_narrow(acc: Tensor, dy: Tensor, x: Tensor) -> Tensor:
    """Adds the gradient of the weight of `project` into a wider `acc`, operands left narrow."""
    return add_narrow_product(acc, dy, x)


def project_shared(h: Tensor, w: Tensor, kv: Tensor, *, head: int) -> Tensor:
    """Returns this rank's queries and the key and value head that it shares with other ranks.

    Shapes:
        h [N, D], w [J C, D], kv [2, G, C, D] -> [N, (J + 2) C]
    """
    return torch.cat((F.linear(h, w), F.linear(h, kv[:, head].flatten(0, 1))), dim=1)


def project_shared_dgrad(dqkv: Tensor, w: Tensor, kv: Tensor, *, head: int) -> Tensor:
    """Returns the gradient of the input of `project_shared`, as far as this rank's heads go."""
    dq, dkv = dqkv[:, : w.shape[0]], dqkv[:, w.shape[0] :]
    return torch.addmm(dq @ w, dkv, kv[:, head].flatten(0, 1))


def project_shared_wgrad(
    acc: Tensor, kv_acc: Tensor, dqkv: Tensor, h: Tensor, *, head: int
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of both weights of `project_shared`; of the second only its own head."""
    width, size = acc.shape[0], kv_acc.shape[2]
    acc = add_product(acc, dqkv[:, :width], h)
    for half in (0, 1):
        columns = slice(width + half * size, width + (half + 1) * size)
        add_product(kv_acc[half, head], dqkv[:, columns], h)
    return acc, kv_acc


def router_logits(h: Tensor, w: Tensor) -> Tensor:
    """Returns the router's logits, computed in the accumulation dtype."""
    acc = accumulation_dtype(h.dtype)
    return F.linear(h.to(acc), w.to(acc))


def router_logits_dgrad(dlogits: Tensor, w: Tensor) -> Tensor:
    """Returns the gradient of the router's input, in the dtype of its weight."""
    return (dlogits @ w.to(dlogits.dtype)).to(w.dtype)


def router_logits_narrow(h: Tensor, w: Tensor) -> Tensor:
    """Returns the router's logits in the accumulation dtype, operands left in their narrow one.

    Numerics:
        A product of two narrow numbers is exact in the accumulation dtype, in which they are added.
    """
    return torch.ops.aten.mm.dtype(h, w.T, accumulation_dtype(h.dtype))


def router_logits_dgrad_narrow(dlogits: Tensor, w: Tensor) -> Tensor:
    """Returns the gradient of the router's input by products of narrow operands.

    Numerics:
        The gradient of the logits goes in as the sum of two narrow numbers: 16 digits of bfloat16's
        kind, rounded once at the end.
    """
    high, low = _split(dlogits, w.dtype)
    return torch.cat((high, low), dim=1) @ torch.cat((w, w))


def router_logits_wgrad_narrow(acc: Tensor, dlogits: Tensor, h: Tensor) -> Tensor:
    """Adds the gradient of the router's weight into `acc`, `dlogits` as two narrow numbers."""
    high, low = _split(dlogits, h.dtype)
    return add_narrow_product(add_narrow_product(acc, high, h), low, h)


def _split(x: Tensor, narrow: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two numbers in a narrow dtype whose sum is x, but for what is lost of the second."""
    high = x.to(narrow)
    return high, (x - high).to(narrow)


def add(x: Tensor, y: Tensor) -> Tensor:
    """Returns the residual sum."""
    return x + y

"""The routed experts: two grouped products with SwiGLU between them; SwiGLU without experts.

Rows are sorted by expert; `ends[l]` is the row after expert l's last. `w[l]` of the up projection
holds the gate half over the up half, so one product gives both. The down projection is the same
product with its own weight. The gate weight of a row multiplies before the down projection, which
is linear, so the combine is a plain sum and the gradient of the weight needs only what is here
(paper 2.3):

    s = silu(g) u weight          u = [g | u], R x 2F
    dweight = rowsum(ds silu(g) u)

Two families of the grouped product: a loop over experts, for every device and dtype, which reads
`ends` on the host; and `F.grouped_mm`, which leaves `ends` on the device and refuses float64.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.ops.precision import add_product, write_product

_CACHED_ROWS = 1024  # the fastest of 64 to 4096 at F = 512 in float32 on 2 cores


def expert_up(rows: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """Returns each row times the transpose of its expert's weight.

    Shapes:
        rows [R, D], w [L, 2F, D], ends [L] -> u [R, 2F]
    """
    if rows.shape[0] == 0:
        return rows @ w[0].T  # no rows that still depend on the operands
    out = rows.new_empty(rows.shape[0], w.shape[1])
    for expert, share in _shares(ends):
        # beta=0 writes the product in place; autograd follows it through the view
        out[share].addmm_(rows[share], w[expert].T, beta=0)
    return out


def expert_up_dgrad(du: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """Returns the gradient of the rows."""
    out = du.new_empty(du.shape[0], w.shape[2])
    for expert, share in _shares(ends):
        torch.mm(du[share], w[expert], out=out[share])
    return out


def expert_up_wgrad(acc: Tensor, du: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """Adds each expert's weight gradient into `acc`; an expert without rows adds nothing."""
    for expert, share in _shares(ends):
        add_product(acc[expert], du[share], rows[share])
    return acc


def expert_up_wgrad_first(acc: Tensor, du: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """Writes each expert's weight gradient over `acc`, zeros for an expert without rows."""
    start = 0
    for expert, end in enumerate(ends.tolist()):
        write_product(acc[expert], du[start:end], rows[start:end])
        start = end
    return acc


def expert_up_grouped(rows: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """Returns what `expert_up` returns, as one grouped product."""
    return F.grouped_mm(rows, w.transpose(1, 2), offs=ends)


def expert_up_dgrad_grouped(du: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """Returns the gradient of the rows, as one grouped product."""
    return F.grouped_mm(du, w, offs=ends)


def expert_up_wgrad_grouped(acc: Tensor, du: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """Adds the weight gradients of all experts into `acc`.

    Numerics:
        One grouped product, rounded once to the dtype of the rows before it is added: torch has no
        wider output.
    """
    if rows.shape[0] == 0:  # a product over no rows has strides that grouped_mm refuses
        return acc
    return acc.add_(F.grouped_mm(du.T, rows, offs=ends))


def expert_up_wgrad_first_grouped(acc: Tensor, du: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """Writes the weight gradients of all experts over `acc`.

    Numerics:
        Rounded as `expert_up_wgrad_grouped`.
    """
    if rows.shape[0] == 0:
        return acc.zero_()
    return acc.copy_(F.grouped_mm(du.T, rows, offs=ends))


def weighted_down(s: Tensor, w: Tensor, ends: Tensor, row_weights: Tensor) -> Tensor:
    """Returns each row times the transpose of its expert's weight, times the weight of the row.

    Shapes:
        s [R, F], w [L, D, F], ends [L], row_weights [R] -> d [R, D]
    """
    made = expert_up(s, w, ends)
    return made * _column(row_weights, made)


def weighted_down_dgrad(
    dd: Tensor, w: Tensor, ends: Tensor, s: Tensor, row_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the rows and of their weights: `<W^T dd, s>`, so no output is kept.

    Paper: 4.3.
    """
    return _weigh(expert_up_dgrad(dd, w, ends), s, row_weights)


def weighted_down_wgrad(
    acc: Tensor, dd: Tensor, s: Tensor, ends: Tensor, row_weights: Tensor
) -> Tensor:
    """Adds each expert's weight gradient into `acc`."""
    return expert_up_wgrad(acc, dd, s * _column(row_weights, s), ends)


def weighted_down_wgrad_first(
    acc: Tensor, dd: Tensor, s: Tensor, ends: Tensor, row_weights: Tensor
) -> Tensor:
    """Writes each expert's weight gradient over `acc`."""
    return expert_up_wgrad_first(acc, dd, s * _column(row_weights, s), ends)


def weighted_down_grouped(s: Tensor, w: Tensor, ends: Tensor, row_weights: Tensor) -> Tensor:
    """Returns what `weighted_down` returns, as one grouped product."""
    return expert_up_grouped(s, w, ends).mul_(_column(row_weights, s))


def weighted_down_dgrad_grouped(
    dd: Tensor, w: Tensor, ends: Tensor, s: Tensor, row_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns both gradients, as one grouped product."""
    return _weigh(expert_up_dgrad_grouped(dd, w, ends), s, row_weights)


def weighted_down_wgrad_grouped(
    acc: Tensor, dd: Tensor, s: Tensor, ends: Tensor, row_weights: Tensor
) -> Tensor:
    """Adds the weight gradients of all experts into `acc`; rounded as `expert_up_wgrad_grouped`."""
    return expert_up_wgrad_grouped(acc, dd, s * _column(row_weights, s), ends)


def weighted_down_wgrad_first_grouped(
    acc: Tensor, dd: Tensor, s: Tensor, ends: Tensor, row_weights: Tensor
) -> Tensor:
    """Writes the weight gradients of all experts over `acc`; rounded likewise."""
    return expert_up_wgrad_first_grouped(acc, dd, s * _column(row_weights, s), ends)


def _weigh(ds: Tensor, s: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of rows and of their weights from that of weighted rows, in place."""
    dweight = torch.sum(ds * s, -1, dtype=row_weights.dtype)
    return ds.mul_(_column(row_weights, ds)), dweight


def swiglu(u: Tensor, row_weights: Tensor, ends: Tensor) -> Tensor:
    """Returns `silu(gate) * up * weight of the row`; behind the last end is nothing that is read.

    Shapes:
        u [R, 2F] = [gate | up], row_weights [R], ends [L] -> s [R, F]
    """
    gate, up = u.chunk(2, dim=-1)
    return F.silu(gate).mul_(up).mul_(_column(row_weights, u))


def swiglu_dgrad(ds: Tensor, u: Tensor, row_weights: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the pre-activations and of the rows' weights.

    Numerics:
        The weight's gradient is one sum over F, in the dtype of `row_weights`.
    """
    du, dweight = torch.empty_like(u), torch.empty_like(row_weights)
    _swiglu_dgrad_into(du, dweight, ds, u, row_weights)
    return du, dweight


def swiglu_dgrad_cpu(
    ds: Tensor, u: Tensor, row_weights: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what `swiglu_dgrad` returns, block by block, so that its passes stay in the cache."""
    du, dweight = torch.empty_like(u), torch.empty_like(row_weights)
    operands = (du, dweight, ds, u, row_weights)
    for block in zip(*(x.split(_CACHED_ROWS) for x in operands), strict=True):
        _swiglu_dgrad_into(*block)
    return du, dweight


def _swiglu_dgrad_into(
    du: Tensor, dweight: Tensor, ds: Tensor, u: Tensor, row_weights: Tensor
) -> None:
    (gate, up), weight = u.chunk(2, dim=-1), _column(row_weights, u)
    dgate, dup = du.chunk(2, dim=-1)
    partial = F.silu(gate).mul_(ds)
    torch.sum(torch.mul(partial, up, out=dgate), -1, dtype=dweight.dtype, out=dweight)
    torch.mul(partial, weight, out=dup)
    torch.mul(ds, up, out=partial).mul_(weight)
    torch.ops.aten.silu_backward.grad_input(partial, gate, grad_input=dgate)


def dense_swiglu(u: Tensor) -> Tensor:
    """Returns `silu(gate) * up`."""
    gate, up = u.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def dense_swiglu_dgrad(ds: Tensor, u: Tensor) -> Tensor:
    """Returns the gradient of the pre-activations."""
    gate, up = u.chunk(2, dim=-1)
    du = torch.empty_like(u)
    dgate, dup = du.chunk(2, dim=-1)
    torch.mul(F.silu(gate), ds, out=dup)
    torch.ops.aten.silu_backward.grad_input(ds * up, gate, grad_input=dgate)
    return du


def _column(row_weights: Tensor, u: Tensor) -> Tensor:
    return row_weights.unsqueeze(-1).to(u.dtype)


def _shares(ends: Tensor) -> Iterator[tuple[int, slice]]:
    """Yields each expert that has rows, with them."""
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            yield expert, slice(start, end)
        start = end

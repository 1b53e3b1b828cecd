"""Which dtype a sum is carried in, and the products that add into such a sum or begin it.

Accumulation happens in promote(dtype, float32), derived from the operands and never written as a
literal, so every body also runs in float64, where layouts are compared.
"""

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which sums over values of `dtype` are carried.

    Example:
        >>> accumulation_dtype(torch.bfloat16), accumulation_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def add_product(acc: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Adds `a.T @ b` into `acc` in place: the weight gradient of a linear map, with no temporary of
    its size.

    Shapes:
        acc [m, n], a [rows, m], b [rows, n]; zero rows add nothing.

    Numerics:
        Operands narrower than `acc` are widened first, so the product is never rounded before it is
        added.
    """
    return acc.addmm_(a.to(acc.dtype).T, b.to(acc.dtype))


def write_product(acc: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Writes `a.T @ b` over `acc`, of which nothing is read.

    Shapes:
        acc [m, n], a [rows, m], b [rows, n]; zero rows write zeros.

    Numerics:
        The bits of `add_product` into zeros.
    """
    return acc.addmm_(a.to(acc.dtype).T, b.to(acc.dtype), beta=0)


def add_narrow_product(acc: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Adds `a.T @ b` into a wider `acc` in place, the operands left in their narrow dtype.

    Numerics:
        The matrix units accumulate in the dtype of `acc` and the product is added there: no
        rounding in between.
    """
    return torch.ops.aten.addmm.dtype_out(acc, a.T, b, acc.dtype, out=acc)

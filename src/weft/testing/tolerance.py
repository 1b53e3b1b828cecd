"""How far two computations of one value may lie apart: class x dtype x length -> relative bound.

The distance is norm(actual - expected) / norm(expected), with every norm in float64. With u the
unit roundoff (half of eps), a result is a number of roundings in its own dtype and a sum of n terms
in the accumulation dtype promote(dtype, float32). Roundings are independent to good approximation,
so a sum of n terms is off by about sqrt(n) u_acc of the norm of its terms (Higham, Accuracy and
Stability of Numerical Algorithms, section 2.8), and

    exact        0
    elementwise  R u
    reduction    R (u + sqrt(n) u_acc)
    matmul       R (u + sqrt(n) u_acc)
    attention    2 R (u + sqrt(n) u_acc)        two products, a softmax between them

R counts the roundings of a few operations on both sides of the comparison. A wrong body is off by
1, or by 1 over the root of the number of rows where a single row is wrong: every bound is far below
both for the sizes of a test.
"""

import torch
from torch import Tensor

from weft.errors import VerificationError
from weft.graph.opset import Tolerance

_ROUNDINGS = 4  # R: a product and a sum on each side of the comparison
GRADIENT_FLOAT64 = 1e-10  # against autograd: 1e5 times rounding, and far below any wrong term


def relative_bound(tolerance: Tolerance, dtype: torch.dtype, length: int = 1) -> float:
    """Returns the bound for a value of `dtype` whose longest sum has `length` terms.

    Example:
        >>> relative_bound(Tolerance.EXACT, torch.float32)
        0.0
        >>> relative_bound(Tolerance.ELEMENTWISE, torch.bfloat16)
        0.015625
    """
    wide = torch.promote_types(dtype, torch.float32)
    rounding = _ROUNDINGS * torch.finfo(dtype).eps / 2
    summing = _ROUNDINGS * torch.finfo(wide).eps / 2 * length**0.5
    match tolerance:
        case Tolerance.EXACT:
            return 0.0
        case Tolerance.ELEMENTWISE:
            return rounding
        case Tolerance.REDUCTION | Tolerance.MATMUL:
            return rounding + summing
        case Tolerance.ATTENTION:
            return 2 * (rounding + summing)


def gradient_bound(tolerance: Tolerance, dtype: torch.dtype, length: int = 1) -> float:
    """Returns the bound for a gradient: the forward's sums and its own, so never that of a copy."""
    if dtype == torch.float64:
        return GRADIENT_FLOAT64
    chain = Tolerance.ATTENTION if tolerance == Tolerance.ATTENTION else Tolerance.MATMUL
    return 2 * relative_bound(chain, dtype, length)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Returns norm(actual - expected) / norm(expected), or norm(actual) where expected is 0.

    Raises:
        VerificationError: the shapes differ.
    """
    if actual.shape != expected.shape:
        raise VerificationError(
            f"found shape {tuple(actual.shape)}, expected {tuple(expected.shape)}; "
            "compare the body's outputs with its ports in graph/opset.py"
        )
    wide, reference = actual.detach().double(), expected.detach().double()
    size = float(torch.linalg.vector_norm(reference))
    return float(torch.linalg.vector_norm(wide - reference)) / (size or 1.0)


def require_close(actual: Tensor, expected: Tensor, bound: float, name: str) -> None:
    """Passes where the relative error is within the bound; not-a-number never is.

    Raises:
        VerificationError: it is not, or the shapes differ.
    """
    error = relative_error(actual, expected)
    if not error <= bound:
        raise VerificationError(
            f"{name}: found a relative error of {error:.3g}, expected at most {bound:.3g}; "
            "run both sides in float64 to tell a wrong term from rounding"
        )

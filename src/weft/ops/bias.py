"""Biases: of a projection, whose gradient is the sum of the rows' gradients.

y = x + b          db = sum over rows of dy
"""

from torch import Tensor


def add_bias(x: Tensor, b: Tensor) -> Tensor:
    """Returns every row plus `b`."""
    return x + b


def add_bias_wgrad(acc: Tensor, dy: Tensor) -> Tensor:
    """Adds the sum of all rows into `acc`."""
    return acc.add_(dy.sum(0, dtype=acc.dtype))

"""Gradients in bfloat16 on the wire: the cast, the sum of what arrived, and the hops of a ring.

    encode_grad     grad (FP32, Z)  ->  its first half, as bfloat16 (Z)
    decode_grad     received (n blocks of z)  ->  ((b0 + b1) + b2) + ..., in the first z of grad
    add_block       what arrived, plus the own block: rounded to bfloat16 at every hop

Everything but a hop of the ring happens in the memory of the gradient:

    bytes      0           2 Z          4 Z
    grad       | FP32 gradient           |
    encode     | bfloat16   |            |
    all-to-all | sent       | received   |
    decode     | shard |                 |      4 z = 4 Z / n bytes, at most 2 Z

The cast goes through the gradient in stretches that double, [e, 2 e) after [0, e): it reads bytes
[4 e, 8 e) and writes [2 e, 4 e), which has been read by then, so no copy is made however large the
bucket is.

Paper: 4.1, Fig 11.
"""

import torch
from torch import Tensor

from weft.ops.precision import accumulation_dtype

_FIRST = 4096  # elements of the first stretch, which alone is copied: 8 KiB
_STRETCH = 1 << 20  # elements summed at once: 4 MiB of FP32 where a sum widens its terms first


def encode_grad(grad: Tensor) -> Tensor:
    """Rounds a gradient to bfloat16 into the first half of its own memory.

    Shapes:
        grad [Z]; returns [Z], which overlaps it.

    Numerics:
        One rounding to nearest an element, after all accumulation.
    """
    narrow, size = grad.view(torch.bfloat16), grad.numel()
    narrow[:_FIRST][:size] = grad[:_FIRST].to(torch.bfloat16)
    first = _FIRST
    while first < size:
        stretch = slice(first, min(2 * first, size))
        narrow[stretch] = grad[stretch]
        first = stretch.stop
    return narrow[:size]


def decode_grad(received: Tensor, grad: Tensor, *, ranks: int) -> Tensor:
    """Sums the blocks of all ranks into the first elements of the gradient's memory.

    Shapes:
        received [ranks z], grad [Z]; returns [z], which overlaps grad and not received.

    Numerics:
        In the dtype of `grad`, in rank order; the sum is not rounded to the wire's dtype.
    """
    blocks = received.view(ranks, -1)
    shard = grad[: blocks.shape[1]]
    for first in range(0, len(shard), _STRETCH):
        stretch = slice(first, first + _STRETCH)
        shard[stretch] = blocks[0, stretch]
        for block in blocks[1:]:
            shard[stretch] += block[stretch]
    return shard


def take_block(sent: Tensor, *, block: int, ranks: int) -> Tensor:
    """The block that a rank starts on its way around the ring."""
    return sent.view(ranks, -1)[block]


def add_block(arrived: Tensor, sent: Tensor, *, block: int) -> Tensor:
    """What arrived and the own term of that block, rounded to the wire's dtype."""
    size = arrived.numel()
    return arrived + sent[block * size : (block + 1) * size]


def widen_grad(partial: Tensor) -> Tensor:
    """A sum that came around the ring, as the optimizer reads it."""
    return partial.to(accumulation_dtype(partial.dtype))


def add_shard(shard: Tensor, total: Tensor) -> Tensor:
    """Adds the sum of a micro-batch to those of earlier ones, in place."""
    return total.add_(shard)


def clear_grad(grad: Tensor, read: Tensor) -> Tensor:
    """Zeroes a gradient whose sum has been taken, for the next micro-batch."""
    return grad.zero_()

"""The end of a step: the gradient's norm, the verdict over all ranks, AdamW on a rank's shard.

    norm2 += sum(g^2)
    verdict = (min(1, clip / (norm + 1e-6)), 1 if loss or norm2 is not finite or too large, or a
                                             row found no room, else 0)

    g    = verdict[0] shard
    mean = b1 mean + (1 - b1) g        square = b2 square + (1 - b2) g^2
    master = master (1 - lr decay) - lr (mean / (1 - b1^t)) / (sqrt(square / (1 - b2^t)) + eps)

A refused step leaves master, mean and square bitwise as they were, and is refused on the device: no
value is read by the host. Elements [0, decay) of the shard are decayed, the rest are not.
`adamw_fused` is the same update by the one pass of torch's own kernel.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_LOSS, _NORM2, _LOSS_BOUND, _NORM2_BOUND, _OVERFLOW = 0, 3, 5, 6, -1  # places, from compose.plan
_CLIP_GUARD = 1e-6  # keeps a zero norm from dividing, the value of torch.nn.utils.clip_grad_norm_


class Rates(NamedTuple):
    """The learning rate and weight decay of a step, and its number from 1."""

    lr: float
    weight_decay: float
    step: int


def square_sum(shard: Tensor, norm2: Tensor) -> Tensor:
    """Adds the sum of squares of the shard to `norm2`.

    Numerics:
        Pairwise summation; a norm or a dot product sums in long runs, whose error was 600 times
        larger at 4M elements.
    """
    return norm2.add_(shard.square().sum(dtype=norm2.dtype))


def decide(stats: Tensor, *, clip_norm: float) -> Tensor:
    """Returns the factor that clips the gradient, and 1 where the step must be refused.

    A bound is the reciprocal of the largest value allowed, so that 0 allows any; what is not finite
    is above all of them. A step is refused as well if any rank had no room for a row.
    """
    loss, norm2 = stats[_LOSS], stats[_NORM2]
    factor = (clip_norm / (norm2.sqrt() + _CLIP_GUARD)).clamp_max(1)
    finite = loss.isfinite() & norm2.isfinite()
    allowed = (loss * stats[_LOSS_BOUND] <= 1) & (norm2 * stats[_NORM2_BOUND] <= 1)
    whole = stats[_OVERFLOW] == 0
    return torch.stack((factor, (~(finite & allowed & whole)).to(stats.dtype)))


def adamw(
    shard: Tensor,
    verdict: Tensor,
    rates: Rates | tuple[float, float, int],
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    own: Tensor,
    decay: int,
    *,
    beta1: float,
    beta2: float,
    eps: float,
) -> Tensor:
    """Updates the state in place unless the verdict refuses the step; returns the parameters.

    Numerics:
        `own`, the shard of the parameters, is the new master rounded once; in the dtype of the
        master it may be the same memory.
    """
    lr, weight_decay, step = rates
    refused = verdict[1] != 0
    gradient = shard * verdict[0]
    new_mean = torch.lerp(mean, gradient, 1 - beta1)
    new_square = (square * beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (new_square / (1 - beta2**step)).sqrt_().add_(eps)
    new_master = master.clone()
    new_master[:decay].mul_(1 - lr * weight_decay)
    new_master.addcdiv_(new_mean, denominator, value=-lr / (1 - beta1**step))
    for state, new in ((mean, new_mean), (square, new_square), (master, new_master)):
        torch.where(refused, state, new, out=state)
    return round_params(master, own)


def adamw_fused(
    shard: Tensor,
    verdict: Tensor,
    rates: Rates | tuple[float, float, int],
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    own: Tensor,
    decay: int,
    *,
    beta1: float,
    beta2: float,
    eps: float,
) -> Tensor:
    """Does what `adamw` does in one pass over the state, the kernel itself refusing the step."""
    lr, weight_decay, step = rates
    gradient = shard * verdict[0]
    step_number = torch.full((), float(step), dtype=torch.float32, device=shard.device)
    for part, rate in ((slice(0, decay), weight_decay), (slice(decay, None), 0.0)):
        if master[part].numel() == 0:
            continue
        torch.ops.aten._fused_adamw_(
            [master[part]],
            [gradient[part]],
            [mean[part]],
            [square[part]],
            [],
            [step_number],
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=rate,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=verdict[1].to(torch.float32),
        )
    return round_params(master, own)


def round_params(master: Tensor, own: Tensor) -> Tensor:
    """Puts the master weights into the shard of the parameters, and returns that."""
    return own if own.data_ptr() == master.data_ptr() else own.copy_(master)

"""The router of Phi-3.5-MoE as it is evaluated: two choices, each with a softmax of its own.

    first   the largest score m; its weight is its softmax among the scores s with
            (m - s) / max(|s|, m) <= 2 jitter
    second  the same of what is left, its weight independent of the first

SparseMixer (arXiv 2310.00811) trains by sampling the choices and correcting the gradient for that.
Here the choices are always the best ones and the gradient is that of their weights, so what is
trained is what is evaluated and no step depends on a random number. `jitter` is the width of the
band of scores that count as equal, not a noise.
"""

import torch
from torch import Tensor


def select_sparsemixer(logits: Tensor, bias: Tensor, *, jitter: float) -> tuple[Tensor, Tensor]:
    """Returns the weights and ids of each token's two experts; ties to the lowest id.

    Shapes:
        logits [T, E], bias [E], for the choice alone -> weights [T, 2], experts [T, 2]
    """
    keys = logits.detach() + bias
    first = keys.argmax(-1, keepdim=True)
    second = keys.scatter(-1, first, float("-inf")).argmax(-1, keepdim=True)
    return replay_sparsemixer(logits, bias, torch.cat((first, second), -1), jitter=jitter)


def replay_sparsemixer(
    logits: Tensor, bias: Tensor, forced: Tensor, *, jitter: float
) -> tuple[Tensor, Tensor]:
    """Returns the weights of experts chosen elsewhere, and their ids."""
    shares = _shares(logits, forced, jitter)
    weights = [p.gather(-1, forced[:, i : i + 1]) for i, p in enumerate(shares)]
    return torch.cat(weights, -1), forced


def select_sparsemixer_dgrad(
    dweights: Tensor, logits: Tensor, experts: Tensor, *, jitter: float
) -> Tensor:
    """Returns the gradient of the logits, of chosen and replayed experts alike."""
    total = torch.zeros_like(logits)
    for i, p in enumerate(_shares(logits, experts, jitter)):
        chosen = experts[:, i : i + 1]
        slope = dweights[:, i : i + 1] * p.gather(-1, chosen)
        total.sub_(p * slope).scatter_add_(-1, chosen, slope)
    return total


def _shares(scores: Tensor, experts: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """The softmax that each of the two choices has its weight from."""
    rest = scores.scatter(-1, experts[:, :1], float("-inf"))
    return _near_best(scores, scores, jitter), _near_best(rest, scores, jitter)


def _near_best(left: Tensor, scores: Tensor, jitter: float) -> Tensor:
    with torch.no_grad():
        best = left.max(-1, keepdim=True).values
        far = (best - scores) / scores.abs().maximum(best) > 2 * jitter
    return left.masked_fill(far, float("-inf")).softmax(-1)

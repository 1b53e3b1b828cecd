"""Which experts a token goes to, and with what weight.

    score   softmax(logits) or sigmoid(logits)
    chosen  the k largest of score + bias, ties to the lowest id
    weight  scaling score[chosen] / (sum of the chosen, where renormalised)

The bias takes part in the choice alone. Gradients reach the logits through the scores. All
arithmetic is in the accumulation dtype, which the logits already have. What keeps the load even is
in `ops.balance`.
"""

import torch
from torch import Tensor


def select_experts(
    logits: Tensor, bias: Tensor, *, top_k: int, score: str, renormalise: bool, scaling: float
) -> tuple[Tensor, Tensor]:
    """Returns the weights and ids of each token's experts, best first."""
    scores = score_experts(logits, score)
    keys = scores.detach() + bias
    experts = keys.sort(dim=-1, descending=True, stable=True).indices[:, :top_k].contiguous()
    return _weights(scores, experts, renormalise=renormalise, scaling=scaling), experts


def replay_experts(
    logits: Tensor,
    bias: Tensor,
    forced: Tensor,
    *,
    top_k: int,
    score: str,
    renormalise: bool,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """Returns the weights of experts chosen elsewhere, and their ids."""
    assert forced.shape[-1] == top_k, f"{forced.shape=} {top_k=}"
    weights = _weights(
        score_experts(logits, score), forced, renormalise=renormalise, scaling=scaling
    )
    return weights, forced


def select_experts_dgrad(
    dweights: Tensor,
    logits: Tensor,
    experts: Tensor,
    *,
    top_k: int,
    score: str,
    renormalise: bool,
    scaling: float,
) -> Tensor:
    """Returns the gradient of the logits, of chosen and replayed experts alike."""
    scores = score_experts(logits, score)
    dchosen = dweights * scaling
    if renormalise:
        chosen = scores.gather(-1, experts)
        total = chosen.sum(-1, keepdim=True)
        dchosen = (dchosen - (dchosen * chosen).sum(-1, keepdim=True) / total) / total
    dscores = torch.zeros_like(scores).scatter_(-1, experts, dchosen)
    if score == "softmax":
        return scores * (dscores - (dscores * scores).sum(-1, keepdim=True))
    return dscores * scores * (1 - scores)


def score_experts(logits: Tensor, score: str) -> Tensor:
    """Returns the score of every expert."""
    return logits.softmax(-1) if score == "softmax" else logits.sigmoid()


def _weights(scores: Tensor, experts: Tensor, *, renormalise: bool, scaling: float) -> Tensor:
    chosen = scores.gather(-1, experts)
    return (chosen / chosen.sum(-1, keepdim=True) if renormalise else chosen) * scaling

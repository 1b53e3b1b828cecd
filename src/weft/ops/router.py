"""Which experts a token goes to, with what weight, and the losses that keep the load even.

    score = softmax(logits) or sigmoid(logits)      chosen = the k largest of score + bias, ties to
    the lowest id weight = scaling score[chosen] / (sum of the chosen, where renormalised)

    balance loss = coef E sum_e (load_e / (tokens k)) (sum_t p_te / tokens)      p = score over its
    sum z loss       = coef sum_t logsumexp(logits_t)^2 / tokens

The bias takes part in the choice alone. Gradients reach the logits through the scores. All
arithmetic is in the accumulation dtype, which the logits already have. Both losses are sums over
this rank's tokens, so ranks add up; `load` is already that of all of them.
"""

import torch
from torch import Tensor


def select_experts(
    logits: Tensor, bias: Tensor, *, top_k: int, score: str, renormalise: bool, scaling: float
) -> tuple[Tensor, Tensor]:
    """Returns the weights and ids of each token's experts, best first."""
    scores = _scores(logits, score)
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
    weights = _weights(_scores(logits, score), forced, renormalise=renormalise, scaling=scaling)
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
    scores = _scores(logits, score)
    dchosen = dweights * scaling
    if renormalise:
        chosen = scores.gather(-1, experts)
        total = chosen.sum(-1, keepdim=True)
        dchosen = (dchosen - (dchosen * chosen).sum(-1, keepdim=True) / total) / total
    dscores = torch.zeros_like(scores).scatter_(-1, experts, dchosen)
    if score == "softmax":
        return scores * (dscores - (dscores * scores).sum(-1, keepdim=True))
    return dscores * scores * (1 - scores)


def router_losses(
    logits: Tensor,
    load: Tensor,
    losses: Tensor,
    *,
    top_k: int,
    score: str,
    aux_coef: float,
    z_coef: float,
    tokens: int,
    scale: float,
) -> Tensor:
    """Adds the balance loss and the z loss of these tokens to `losses`.

    Shapes:
        logits [T, E], load [E], losses [2]
    """
    share = _share(load, logits, tokens * top_k)
    probability = _probabilities(logits, score).sum(0) / tokens
    aux = (share * probability).sum() * (scale * aux_coef)
    z = logits.logsumexp(-1).square().sum() * (scale * z_coef / tokens)
    return losses.add_(torch.stack((aux, z)))


def router_losses_dgrad(
    logits: Tensor,
    load: Tensor,
    *,
    top_k: int,
    score: str,
    aux_coef: float,
    z_coef: float,
    tokens: int,
    scale: float,
) -> Tensor:
    """Returns the gradient of the sum of both losses."""
    p = _probabilities(logits, score)
    dp = _share(load, logits, tokens * top_k) * (scale * aux_coef / tokens)
    centred = dp - (p * dp).sum(-1, keepdim=True)
    # a sigmoid's own derivative is s (1 - s), and p = s / sum(s)
    daux = p * centred if score == "softmax" else p * (1 - logits.sigmoid()) * centred
    lse = logits.logsumexp(-1, keepdim=True)
    return daux + (logits - lse).exp() * lse * (2 * scale * z_coef / tokens)


def add_load(load: Tensor, tally: Tensor) -> Tensor:
    """Adds the load to the running tally."""
    return tally.add_(load)


def _scores(logits: Tensor, score: str) -> Tensor:
    return logits.softmax(-1) if score == "softmax" else logits.sigmoid()


def _probabilities(logits: Tensor, score: str) -> Tensor:
    scores = _scores(logits, score)
    return scores if score == "softmax" else scores / scores.sum(-1, keepdim=True)


def _weights(scores: Tensor, experts: Tensor, *, renormalise: bool, scaling: float) -> Tensor:
    chosen = scores.gather(-1, experts)
    return (chosen / chosen.sum(-1, keepdim=True) if renormalise else chosen) * scaling


def _share(load: Tensor, logits: Tensor, choices: int) -> Tensor:
    """The load of each expert over that of an even spread."""
    return load.to(logits.dtype) * (logits.shape[-1] / choices)

"""What keeps the load of experts even: losses, a bias that moves, and a limit on what is taken.

    p_te      score of expert e by token t, over the sum of its scores
    f_e       E load_e / (N k), the load of e over an even one, in a micro-batch of N tokens
    g_e       the mean of f over the group of experts that e is in          (paper 5; DeepSeek-V2)
    f_be      E load_be / (S k), of the S tokens of sequence b alone        (DeepSeek-V3)
    past_e    f_e over all tokens of the step before                        (over the global batch)

    balance loss   sum_t sum_e p_te (expert f_e + group g_e + sequence f_be + global past_e) / N
    z loss         coef sum_t logsumexp(logits_t)^2 / N
    bias           bias_e += rate sign(mean load - load_e), once a step     (arXiv 2408.15664)
    capacity       a group of experts takes its choices of the highest scores, ties to the lower
                   token; the rest is dropped

Loads are constants to the gradient. They are those of the whole micro-batch (or step), whatever
rank holds its tokens, and what is summed here are this rank's tokens, so ranks add up. The load of
a step is known after its last forward, so the global loss takes that of the step before: then it
is the same number for every layout and order.
"""

from math import log2

import torch
from torch import Tensor

from weft.ops.router import score_experts


def count_load(chosen: Tensor, *, experts: int, first: int, stretch: int, rows: int) -> Tensor:
    """Returns how many choices of each sequence of the micro-batch fell on each expert.

    A rank numbers its tokens from `first`, `stretch` to a sequence.

    Shapes:
        chosen [T, k] -> load [rows, experts]
    """
    place = chosen + experts * _row_of(chosen, first, stretch).unsqueeze(-1)
    edges = torch.arange(rows * experts + 1, device=chosen.device)
    return torch.searchsorted(place.flatten().sort().values, edges).diff().view(rows, experts)


def add_load(load: Tensor, tally: Tensor) -> Tensor:
    """Adds the load of all sequences to the running tally."""
    return tally.add_(load.sum(0))


def router_losses(
    logits: Tensor,
    load: Tensor,
    past: Tensor,
    losses: Tensor,
    *,
    top_k: int,
    score: str,
    aux_coef: float,
    device_coef: float,
    sequence_coef: float,
    global_coef: float,
    groups: int,
    z_coef: float,
    first: int,
    sequence: int,
    stretch: int,
    scale: float,
) -> Tensor:
    """Adds the balance loss and the z loss of these tokens to `losses`.

    A rank numbers its tokens from `first`, `stretch` of each sequence of `sequence` tokens.

    Shapes:
        logits [T, E], load [B, E], past [E], losses [2]
    """
    tokens = load.shape[0] * sequence
    pressure = _pressure(
        load, past.to(logits.dtype), top_k=top_k, sequence=sequence, groups=groups,
        coefs=(aux_coef, device_coef, sequence_coef, global_coef),
    )  # fmt: skip
    share = _probabilities(logits, score) * pressure[_row_of(logits, first, stretch)]
    aux = share.sum() * (scale / tokens)
    z = logits.logsumexp(-1).square().sum() * (scale * z_coef / tokens)
    return losses.add_(torch.stack((aux, z)))


def router_losses_dgrad(
    logits: Tensor,
    load: Tensor,
    past: Tensor,
    *,
    top_k: int,
    score: str,
    aux_coef: float,
    device_coef: float,
    sequence_coef: float,
    global_coef: float,
    groups: int,
    z_coef: float,
    first: int,
    sequence: int,
    stretch: int,
    scale: float,
) -> Tensor:
    """Returns the gradient of the sum of both losses."""
    tokens = load.shape[0] * sequence
    pressure = _pressure(
        load, past.to(logits.dtype), top_k=top_k, sequence=sequence, groups=groups,
        coefs=(aux_coef, device_coef, sequence_coef, global_coef),
    )  # fmt: skip
    p = _probabilities(logits, score)
    dp = (pressure * (scale / tokens))[_row_of(logits, first, stretch)]
    centred = dp - (p * dp).sum(-1, keepdim=True)
    # a sigmoid's own derivative is s (1 - s), and p = s / sum(s)
    daux = p * centred if score == "softmax" else p * (1 - logits.sigmoid()) * centred
    lse = logits.logsumexp(-1, keepdim=True)
    return daux + (logits - lse).exp() * lse * (2 * scale * z_coef / tokens)


def score_choices(logits: Tensor, chosen: Tensor, *, score: str) -> Tensor:
    """Returns each token's scores of the experts it chose, as they are without weight or bias."""
    return score_experts(logits, score).gather(-1, chosen)


def keep_choices(
    scores: Tensor,
    chosen: Tensor,
    *,
    experts: int,
    groups: int,
    capacity: int,
    first: int,
    tokens: int,
) -> tuple[Tensor, Tensor]:
    """Returns the choices of this rank's tokens, a dropped one as expert number `experts`, which
    nobody holds, and how many those are.

    Of each group of experts the `capacity` choices with the highest scores are kept, of equal ones
    those of the lower token and then of the better choice.

    Shapes:
        scores, chosen [N, k] of the whole micro-batch -> kept [tokens, k] from token `first`,
        dropped [1]

    Numerics:
        Scores are compared by the upper half of their digits. Two tokens with one history (the
        same first token of two documents) have the same score but for its last bit, which depends
        on the layout, and that bit must not decide.
    """
    flat = chosen.flatten()
    group = flat // (experts // groups)
    by_score = _coarse(scores.flatten()).sort(descending=True, stable=True).indices
    in_group = group[by_score].sort(stable=True)
    ranked = by_score[in_group.indices]
    starts = torch.searchsorted(in_group.values, torch.arange(groups, device=flat.device))
    place = torch.arange(len(flat), device=flat.device) - starts[in_group.values]
    kept = torch.empty_like(flat)
    kept[ranked] = torch.where(place < capacity, flat[ranked], experts)
    own = kept.view_as(chosen)[first : first + tokens].contiguous()
    return own, (own == experts).sum().view(1)


def add_dropped(dropped: Tensor, tally: Tensor) -> Tensor:
    """Adds the choices that got no row to their running tally."""
    return tally.add_(dropped)


def balance_router(
    stats: Tensor, verdict: Tensor, biases: Tensor, past: Tensor, *, rate: float, first: int
) -> tuple[Tensor, Tensor]:
    """Moves every bias towards an even load, and remembers the load over an even one.

    A refused step leaves both as they were. A layer without experts has no load and stays at 0.

    Shapes:
        biases, past [layers, E]; stats holds their loads from `first`
    """
    load = stats[first : first + biases.numel()].view_as(biases)
    mean = load.mean(-1, keepdim=True)
    taken = verdict[1] == 0
    biases.add_(torch.where(taken, (mean - load).sign(), 0), alpha=rate)
    past.copy_(torch.where(taken, load / mean.clamp_min(1), past))
    return biases, past


def _pressure(
    load: Tensor,
    past: Tensor,
    *,
    top_k: int,
    sequence: int,
    groups: int,
    coefs: tuple[float, float, float, float],
) -> Tensor:
    """What a unit of each expert's probability costs the tokens of each sequence.

    Shapes: [B, E]
    """
    expert_coef, device_coef, sequence_coef, global_coef = coefs
    experts = load.shape[1]
    each = load.to(past.dtype) * (experts / (sequence * top_k))
    whole = each.mean(0)
    grouped = whole.view(groups, -1).mean(-1).repeat_interleave(experts // groups)
    shared = expert_coef * whole + device_coef * grouped + global_coef * past
    return shared + sequence_coef * each


def _coarse(scores: Tensor) -> Tensor:
    """The scores rounded to half of their digits."""
    digits = round(-log2(torch.finfo(scores.dtype).eps)) // 2
    mantissa, exponent = torch.frexp(scores)
    return torch.ldexp((mantissa * 2**digits).round(), exponent - digits)


def _row_of(tokens: Tensor, first: int, stretch: int) -> Tensor:
    """The sequence of each token, tokens being numbered from `first`, `stretch` to a sequence."""
    return (first + torch.arange(tokens.shape[0], device=tokens.device)) // stretch


def _probabilities(logits: Tensor, score: str) -> Tensor:
    scores = score_experts(logits, score)
    return scores if score == "softmax" else scores / scores.sum(-1, keepdim=True)

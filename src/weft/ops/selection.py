"""Selections other than the k best of all experts.

Group-limited (DeepSeek-V3, arXiv 2412.19437, section 2.1.2): experts lie in groups of equal size, a
token goes to the `top_groups` groups whose two best keys add up to most, and chooses among their
experts as usual. Gate weights and gradients are those of any choice.
"""

import torch
from torch import Tensor

from weft.ops.router import replay_experts, select_experts_dgrad


def select_grouped_experts(
    logits: Tensor,
    bias: Tensor,
    *,
    top_k: int,
    score: str,
    renormalise: bool,
    scaling: float,
    groups: int,
    top_groups: int,
) -> tuple[Tensor, Tensor]:
    """Returns the weights and ids of each token's experts, best first; ties to the lowest id."""
    with torch.no_grad():
        keys = (logits.softmax(-1) if score == "softmax" else logits.sigmoid()) + bias
        by_group = keys.unflatten(-1, (groups, -1))
        worth = by_group.topk(2, -1).values.sum(-1)
        best = worth.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
        outside = torch.ones_like(worth, dtype=torch.bool).scatter_(-1, best, False)
        keys = by_group.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(-2)
        experts = keys.sort(dim=-1, descending=True, stable=True).indices[:, :top_k].contiguous()
    rule = {"top_k": top_k, "score": score, "renormalise": renormalise, "scaling": scaling}
    return replay_experts(logits, bias, experts, **rule)


def select_grouped_experts_dgrad(
    dweights: Tensor,
    logits: Tensor,
    experts: Tensor,
    *,
    top_k: int,
    score: str,
    renormalise: bool,
    scaling: float,
    groups: int,
    top_groups: int,
) -> Tensor:
    """Returns the gradient of the logits."""
    rule = {"top_k": top_k, "score": score, "renormalise": renormalise, "scaling": scaling}
    return select_experts_dgrad(dweights, logits, experts, **rule)

"""The limit on what a group of experts takes, decided over all tokens of a micro-batch.

    score choices -> all-gather over sp -> keep the highest scores of each group -> own tokens

Every rank of the sequence-parallel group decides the same from the same numbers, so a choice is
kept or dropped whatever the layout. A dropped choice names an expert that nobody holds: it gets no
row, and its token passes by that expert.

Paper: 5; the groups are the model's, not the ranks'.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """Groups of neighbouring experts, and the choices of a micro-batch that each of them takes."""

    groups: int
    capacity: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A rank's tokens of a micro-batch: the number of its first one, how many, and of how many
    ranks.
    """

    first: int
    tokens: int
    sp: int


def keep_within(
    o: Any, logits: Any, experts: Any, *, limit: Limit, share: Share, score: str, num_experts: int
) -> Any:
    """This rank's choices with the dropped ones taken out, and how many were dropped."""
    (scores,) = o.call("score_choices", logits, experts, score=score)
    if share.sp > 1:
        whole = {"U": "N"}
        (scores,) = o.call("all_gather_weights", scores, axis="sp", label="scores", renames=whole)
        (experts,) = o.call(
            "all_gather_experts", experts, axis="sp", label="choices", renames=whole
        )
    return o.call(
        "keep_choices", scores, experts,
        experts=num_experts, groups=limit.groups, capacity=limit.capacity,
        first=share.first, tokens=share.tokens,
    )  # fmt: skip

"""The map of a token's visits: one row for each rank that holds some of its experts.

A rank holds `local` neighbouring experts. Visit (t, d) exists where token t chose an expert of rank
d; visits lie by rank, then by token, and have the number t Y + d among all that could be:

    order[row] = t Y + d        slot_row[t, d] = row, or -1 where t does not go to d

What a visitor asks for travels with it: its choices as the expert's number on that rank, -1 for
those of other ranks.
"""

import torch
from torch import Tensor

from weft.ops.rows import Splits


def count_visits(chosen: Tensor, *, ranks: int, local: int) -> Tensor:
    """Returns, for each rank in turn, how many tokens go there and how many choices they bring.

    Shapes:
        chosen [T, k] -> [2 Y]
    """
    there = torch.arange(ranks, device=chosen.device)
    choices = (chosen.unsqueeze(-1) // local == there).sum((0, 1))
    return torch.stack((_visits(chosen, ranks, local).sum(0), choices), dim=1).flatten()


def visits_to_host(sent: Tensor, received: Tensor) -> tuple[Splits, int]:
    """Returns the splits of the exchange and the rows on this rank, by one copy to the host.

    Shapes:
        sent [2 Y], received [Y, 2]
    """
    leaving, arriving = torch.stack((sent.view(-1, 2), received)).tolist()
    splits = Splits(
        send=tuple(visits for visits, _ in leaving), receive=tuple(v for v, _ in arriving)
    )
    return splits, sum(rows for _, rows in arriving)


def plan_visits(
    chosen: Tensor, splits: Splits, *, ranks: int, local: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the map of visits, and what each asks for on its rank.

    Shapes:
        chosen [T, k] -> order [o], slot_row [T, Y], choices [o, k]
    """
    tokens, leaving = chosen.shape[0], sum(splits.send)
    flat = _visits(chosen, ranks, local).T.reshape(-1)
    place = flat.logical_not().to(torch.uint8).argsort(stable=True)[:leaving]
    rank, token = place // max(tokens, 1), place % max(tokens, 1)
    order = token * ranks + rank
    slot_row = torch.full((tokens * ranks,), -1, dtype=torch.int64, device=chosen.device)
    slot_row[order] = torch.arange(leaving, device=chosen.device)
    asked = chosen.index_select(0, token) - (rank * local).unsqueeze(1)
    elsewhere = (asked < 0) | (asked >= local)
    return order, slot_row.view(tokens, ranks), asked.masked_fill(elsewhere, -1)


def _visits(chosen: Tensor, ranks: int, local: int) -> Tensor:
    """Shapes: chosen [T, k] -> [T, Y], whether a token goes to a rank."""
    visits = torch.zeros(chosen.shape[0], ranks, dtype=torch.bool, device=chosen.device)
    return visits.scatter_(1, chosen // local, torch.ones_like(chosen, dtype=torch.bool))

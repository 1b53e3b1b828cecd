"""One collective as a value: what was asked, in which group, what comes out, how much arrives.

    n ranks, b bytes of x on each                 bytes a rank receives from the others
    all_to_all         n equal blocks of dim 0    b (n-1) / n
    all_to_all_sum     own block of the sum       b (n-1) / n, of the dtype that travels
    all_to_all_rows    ragged rows of dim 0       bytes of the rows whose source is another rank
    all_gather         joined along dim 0         b (n-1)
    reduce_scatter     own block of the sum       b (n-1) / n
    all_reduce         the sum                    2 b (n-1) / n, rounded down
    send               to one peer                0
    receive            from one peer              b, of the result

These are the bytes of the algorithm, not of an implementation of it: `planner` predicts them and
`counting` counts them, and the two are compared for equality.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import prod

import torch
from torch import Tensor


class Collective(StrEnum):
    """The closed set of collectives, and the two halves of a message between two members."""

    ALL_TO_ALL = "all_to_all"
    ALL_TO_ALL_SUM = "all_to_all_sum"
    ALL_TO_ALL_ROWS = "all_to_all_rows"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_REDUCE = "all_reduce"
    SEND = "send"
    RECEIVE = "receive"


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One rank's part in one collective. `dtype` is what travels, `send` and `receive` are the rows
    to and from each member of the group, `peer` is the position of the other end of a message.
    """

    collective: Collective
    axis: str
    lane: str
    label: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    send: tuple[int, ...] = ()
    receive: tuple[int, ...] = ()
    peer: int = 0

    @property
    def is_message(self) -> bool:
        """Whether two members take part and not all."""
        return self.collective in (Collective.SEND, Collective.RECEIVE)

    def __str__(self) -> str:
        detail = f" send {self.send} receive {self.receive}" if self.send else ""
        if self.is_message:
            way = "to" if self.collective is Collective.SEND else "from"
            detail = f" {way} position {self.peer}"
        return f"{self.collective} {self.label!r} of {self.dtype} {list(self.shape)}{detail}"


def output_shape(call: Call, size: int) -> tuple[int, ...]:
    """The shape of the result on this rank, in a group of `size`."""
    match call.collective:
        case Collective.ALL_TO_ALL | Collective.ALL_REDUCE | Collective.SEND | Collective.RECEIVE:
            return call.shape
        case Collective.ALL_TO_ALL_ROWS:
            return (sum(call.receive), *call.shape[1:])
        case Collective.ALL_GATHER:
            return (call.shape[0] * size, *call.shape[1:])
        case Collective.REDUCE_SCATTER | Collective.ALL_TO_ALL_SUM:
            return (call.shape[0] // size, *call.shape[1:])


def received_bytes(call: Call, *, size: int, position: int) -> int:
    """The bytes that reach this rank from the others, by the table above.

    Example:
        >>> call = Call(collective=Collective.ALL_GATHER, axis="ep", lane="comm", label="tokens",
        ...             shape=(3, 2), dtype=torch.bfloat16)
        >>> received_bytes(call, size=4, position=0)
        36
    """
    x_bytes = prod(call.shape) * call.dtype.itemsize
    match call.collective:
        case Collective.ALL_TO_ALL | Collective.ALL_TO_ALL_SUM | Collective.REDUCE_SCATTER:
            return x_bytes * (size - 1) // size
        case Collective.ALL_TO_ALL_ROWS:
            row_bytes = prod(call.shape[1:]) * call.dtype.itemsize
            return row_bytes * (sum(call.receive) - call.receive[position])
        case Collective.ALL_GATHER:
            return x_bytes * (size - 1)
        case Collective.ALL_REDUCE:
            return 2 * x_bytes * (size - 1) // size
        case Collective.SEND:
            return 0
        case Collective.RECEIVE:
            return x_bytes


def sum_in_rank_order(parts: Iterable[Tensor], out: Tensor) -> Tensor:
    """Writes the sum of the parts into `out`, one rank after the other, and returns it.

    Numerics: `((x0 + x1) + x2) + ...` in FP32 (wider numbers in their own dtype), rounded once to
    the dtype of `out`: the same bits on every rank and every transport that uses it.
    """
    first, *rest = parts
    if len(rest) == 1 and first.dtype is out.dtype:
        return torch.add(first, rest[0], out=out)  # one addition: rounded once as it is
    wide = torch.promote_types(out.dtype, torch.float32) if out.is_floating_point() else out.dtype
    total = out if out.dtype is wide else torch.empty_like(out, dtype=wide)
    total.copy_(first)
    for part in rest:
        total.add_(part)
    return out if total is out else out.copy_(total)

"""Collectives over peer memory, beside another wire that carries what is left.

    all_gather              own x to everybody                         copied where it lands
    all_to_all, rows        block j to member j                        copied where it lands
    reduce_scatter          block j to member j                        added in rank order, FP32
    all_reduce              own x to everybody                         added in rank order, FP32
    all_to_all_sum          block j to member j, rounded on its way    added in rank order, FP32
    send, receive, barrier  the other wire

Which of the two a collective takes is decided from its call alone, by a table that is the same on
every member (`comm.crossover`). Nothing here waits on the host: a call is ordered behind the stream
on which it is issued, and that stream behind the call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from weft.comm.call import Call, Collective, sum_in_rank_order
from weft.comm.crossover import Crossover
from weft.comm.exchange import Block, Channel, Made, Sum
from weft.comm.handle import Finished, Handle
from weft.comm.transport import Transport
from weft.comm.wire import GroupKey

Encode = Callable[[Tensor, Tensor], object]  # a piece, where it is written, rounded
AddTerms = Callable[[list[Tensor], int, Tensor], object]  # terms by rank, own position, their sum


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """The two bodies of `all_to_all_sum`: a piece is rounded into a slot, and slots are added to
    the own piece, rounded as if it had travelled.
    """

    encode: Encode
    add: AddTerms


def encode(piece: Tensor, into: Tensor) -> None:
    """Rounds a piece into a slot.

    Numerics: one rounding to nearest an element.
    """
    into.copy_(piece)


def add_rounded(terms: list[Tensor], position: int, out: Tensor) -> None:
    """Adds terms that travelled and the own one, rounded as they were, in rank order.

    Numerics: FP32 between terms; `out` may be the own term.
    """
    dtype = next(term.dtype for rank, term in enumerate(terms) if rank != position)
    own = terms[position].to(dtype)
    sum_in_rank_order((*terms[:position], own, *terms[position + 1 :]), out)


REFERENCE = Sums(encode=encode, add=add_rounded)


@final
class SymmetricTransport(Transport):
    """The channels of this process by (axis, lane), and the transport beside them; `reasons` say
    why a group has no channel.

    Numerics: bit for bit those of `stacked` for every call that it takes.
    """

    def __init__(
        self,
        inner: Transport,
        channels: Mapping[GroupKey, Channel],
        *,
        rule: Crossover,
        sums: Sums = REFERENCE,
        reasons: Mapping[GroupKey, str] = MappingProxyType({}),
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._inner = inner
        self._channels = channels
        self._rule = rule
        self._sums = sums
        self._reasons = reasons
        self._close = close

    def group_size(self, axis: str) -> int:
        return self._inner.group_size(axis)

    def group_rank(self, axis: str) -> int:
        return self._inner.group_rank(axis)

    def describe(self) -> str:
        rest = self._inner.describe()
        axes = ", ".join(dict.fromkeys(axis for axis, _ in self._channels)) or "no axis"
        apart = "".join(
            f"; {rest} alone on {axis}: {why}" for (axis, _), why in self._reasons.items()
        )
        return f"peer memory on {axes}, {rest} beside it{apart}"

    def sums_on_arrival(self) -> bool:
        return bool(self._channels) and Collective.ALL_TO_ALL_SUM in self._rule.sizes

    def barrier(self) -> None:
        self._inner.barrier()

    def close(self) -> None:
        self._inner.barrier()  # nobody's arena goes while somebody still reads it
        self._close()
        self._inner.close()

    def exposed_seconds(self) -> float:
        return self._inner.exposed_seconds()

    def reset_exposed(self) -> None:
        self._inner.reset_exposed()

    def post(self, call: Call, x: Tensor, out: Tensor) -> Handle:
        channel = self._channels.get((call.axis, call.lane))
        size = self._inner.group_size(call.axis)
        if channel is None or not self._rule.takes(call, size):
            return self._inner.post(call, x, out)
        part = _Part(call=call, x=x, out=out, size=size, position=self._inner.group_rank(call.axis))
        match call.collective:
            case Collective.ALL_TO_ALL_SUM:
                _add(channel, part, _rounded_blocks(part, self._sums.encode), self._sums.add)
            case Collective.REDUCE_SCATTER | Collective.ALL_REDUCE:
                _add(channel, part, _own_blocks(part), _add_terms)
            case _:
                channel.exchange(
                    _Named(call), _own_blocks(part), _blocks(_bytes(out), _lands(part))
                )
        return Finished(out)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What a member brings to a call: its tensors, its place, how many there are."""

    call: Call
    x: Tensor
    out: Tensor
    size: int
    position: int


class _Named:
    """A call with its group, put into words where one is reported."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        self.call = call

    def __str__(self) -> str:
        return f"{self.call} over axis {self.call.axis} lane {self.call.lane}"


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)


def _blocks(flat: Tensor, sizes: Sequence[int]) -> list[Block]:
    """Stretches of the tensor, one behind the other."""
    starts = accumulate(sizes, initial=0)
    return [Block(tensor=flat, first=a, size=b) for a, b in zip(starts, sizes, strict=False)]


def _own_blocks(part: _Part) -> list[Block]:
    """What goes to each member, as it is."""
    flat = _bytes(part.x)
    match part.call.collective:
        case Collective.ALL_GATHER | Collective.ALL_REDUCE:
            return [Block(tensor=flat, first=0, size=flat.numel())] * part.size
        case Collective.ALL_TO_ALL_ROWS:
            return _blocks(flat, _row_bytes(part.call, part.call.send))
        case _:
            return _blocks(flat, [flat.numel() // part.size] * part.size)


def _lands(part: _Part) -> list[int]:
    """The bytes that come from each member."""
    if part.call.collective is Collective.ALL_TO_ALL_ROWS:
        return _row_bytes(part.call, part.call.receive)
    return [part.out.nbytes // part.size] * part.size


def _row_bytes(call: Call, rows: Sequence[int]) -> list[int]:
    width = prod(call.shape[1:]) * call.dtype.itemsize
    return [count * width for count in rows]


def _rounded_blocks(part: _Part, encode: Encode) -> list[Made]:
    """What goes to each member, rounded to the dtype of the call as it goes."""
    dtype, width = part.call.dtype, part.call.dtype.itemsize

    def block(x: Tensor) -> Made:
        def make(slot: Tensor, first: int, size: int) -> None:
            encode(x[first // width : (first + size) // width], slot[:size].view(dtype))

        return Made(size=x.numel() * width, make=make)

    return [block(x) for x in part.x.view(part.size, -1)]


def _add(channel: Channel, part: _Part, sends: Sequence[Block | Made], add: AddTerms) -> None:
    """Sends the blocks and adds, piece by piece, the own term and those that arrive."""
    dtype, width = part.call.dtype, part.call.dtype.itemsize
    whole = part.call.collective is Collective.ALL_REDUCE
    own = part.x.view(-1) if whole else part.x.view(part.size, -1)[part.position]
    total = part.out.view(-1)

    def add_piece(slots: dict[int, Tensor], first: int, size: int) -> None:
        stretch = slice(first // width, (first + size) // width)
        terms = {rank: slot[:size].view(dtype) for rank, slot in slots.items()}
        terms[part.position] = own[stretch]
        add([terms[rank] for rank in range(part.size)], part.position, total[stretch])

    channel.add(_Named(part.call), sends, Sum(size=own.numel() * width, add=add_piece))


def _add_terms(terms: list[Tensor], position: int, out: Tensor) -> None:
    del position  # all terms are alike
    sum_in_rank_order(terms, out)

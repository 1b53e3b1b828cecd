"""Collectives over peer memory, beside another wire that carries what is left.

    all_gather              own x to everybody                         copied where it lands
    all_to_all, rows        block j to member j                        copied where it lands
    reduce_scatter          block j to member j                        added in rank order, FP32
    all_reduce              own x to everybody                         added in rank order, FP32
    all_to_all_sum          block j to member j, rounded on its way    added in rank order, FP32
    send, receive, barrier  the other wire

Where there are kernels, a call of even blocks is one, up to so many bytes (`comm.kernel`); the
others are pieces that copy engines push (`comm.exchange`).

Which of them a collective takes is decided from its call alone, by a table that is the same on
every member (`comm.crossover`). Nothing here waits on the host: a call is ordered behind the stream
on which it is issued, and that stream behind the call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from weft.comm.call import Call, Collective, output_shape, sum_in_rank_order
from weft.comm.crossover import Crossover, takes
from weft.comm.exchange import Add, Channel, Make
from weft.comm.handle import Finished, Handle
from weft.comm.kernel import KernelChannel
from weft.comm.route import Block, Piece, Route, find_route, in_turn
from weft.comm.transport import Transport
from weft.comm.wire import GroupKey

_SHAPES = 1024  # routes that are kept: more than a step has calls; ragged rows come and go

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
    own = terms[position].to(dtype, copy=True)  # `out` is written before it is added
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
        kernels: Mapping[GroupKey, KernelChannel] = MappingProxyType({}),
        reasons: Mapping[GroupKey, str] = MappingProxyType({}),
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._inner = inner
        self._channels = channels
        self._rule = rule
        self._sums = sums
        self._kernels = kernels
        self._reasons = reasons
        self._close = close
        self._route = lru_cache(_SHAPES)(self._find_route)  # a call of a step is that of the last

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
        ways = ((self._kernels, self._rule.kernels), (self._channels, self._rule.copies))
        return any(groups and Collective.ALL_TO_ALL_SUM in sizes for groups, sizes in ways)

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
        if channel is None:
            return self._inner.post(call, x, out)
        kernel = self._kernels.get((call.axis, call.lane))
        if (
            kernel is not None
            and kernel.takes(call)
            and takes(self._rule.kernels, call, channel.size)
        ):
            kernel.post(_Named(call), call, x, out)
            return Finished(out)
        if not takes(self._rule.copies, call, channel.size):
            return self._inner.post(call, x, out)
        self._post_pieces(channel, call, x, out)
        return Finished(out)

    def _post_pieces(self, channel: Channel, call: Call, x: Tensor, out: Tensor) -> None:
        name, route = _Named(call), self._route(call)
        match call.collective:
            case Collective.ALL_TO_ALL_SUM:
                own = x.view(channel.size, -1)[channel.position]
                add = _adding(channel, call, own, out, self._sums.add)
                channel.add_made(name, route, _rounding(call, x, self._sums.encode), add)
            case Collective.REDUCE_SCATTER:
                own = x.view(channel.size, -1)[channel.position]
                channel.add(name, route, _bytes(x), _adding(channel, call, own, out, _add_terms))
            case Collective.ALL_REDUCE:
                channel.add(name, route, _bytes(x), _adding(channel, call, x, out, _add_terms))
            case _:
                channel.exchange(name, route, _bytes(x), _bytes(out))

    def _find_route(self, call: Call) -> Route:
        channel = self._channels[call.axis, call.lane]
        size, position = channel.size, channel.position
        sends, lands = _sends(call, size), _lands(call, size)
        if call.collective in _SUMS:  # the own term is added where it lies
            sends[position] = lands[position] = Block(0, 0)
        return find_route(sends, lands, position=position, slot_bytes=channel.slot_bytes)


_SUMS = (Collective.ALL_TO_ALL_SUM, Collective.REDUCE_SCATTER, Collective.ALL_REDUCE)


class _Named:
    """A call with its group, put into words where one is reported."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        self.call = call

    def __str__(self) -> str:
        return f"{self.call} over axis {self.call.axis} lane {self.call.lane}"


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)


def _sends(call: Call, size: int) -> list[Block]:
    """What goes to each member, in the dtype that travels."""
    num_bytes = prod(call.shape) * call.dtype.itemsize
    match call.collective:
        case Collective.ALL_GATHER | Collective.ALL_REDUCE:
            return [Block(0, num_bytes)] * size
        case Collective.ALL_TO_ALL_ROWS:
            return in_turn(_row_bytes(call, call.send))
        case _:
            return in_turn([num_bytes // size] * size)


def _lands(call: Call, size: int) -> list[Block]:
    """Where what comes from each member belongs; all terms of a sum in one place."""
    num_bytes = prod(output_shape(call, size)) * call.dtype.itemsize
    if call.collective in _SUMS:
        return [Block(0, num_bytes)] * size
    if call.collective is Collective.ALL_TO_ALL_ROWS:
        return in_turn(_row_bytes(call, call.receive))
    return in_turn([num_bytes // size] * size)


def _row_bytes(call: Call, rows: Sequence[int]) -> list[int]:
    width = prod(call.shape[1:]) * call.dtype.itemsize
    return [count * width for count in rows]


def _rounding(call: Call, x: Tensor, encode: Encode) -> Make:
    """Makes what goes to a member: rounded to the dtype of the call as it goes."""
    dtype, width, flat = call.dtype, call.dtype.itemsize, x.view(-1)

    def make(piece: Piece, slot: Tensor) -> None:
        _, first, size = piece
        encode(flat[first // width : (first + size) // width], slot[:size].view(dtype))

    return make


def _adding(channel: Channel, call: Call, own: Tensor, out: Tensor, add: AddTerms) -> Add:
    """Adds, piece by piece, the own term and those that have arrived."""
    dtype, width, position = call.dtype, call.dtype.itemsize, channel.position
    own, total = own.view(-1), out.view(-1)

    def add_piece(piece: Piece, slots: dict[int, Tensor]) -> None:
        _, first, size = piece
        stretch = slice(first // width, (first + size) // width)
        terms = {rank: slot[:size].view(dtype) for rank, slot in slots.items()}
        terms[position] = own[stretch]
        add([terms[rank] for rank in range(channel.size)], position, total[stretch])

    return add_piece


def _add_terms(terms: list[Tensor], position: int, out: Tensor) -> None:
    del position  # all terms are alike
    sum_in_rank_order(terms, out)

"""The only door to the wire: collectives over named axes, messages, and what transports provide.

A caller uses these methods. They check the arguments, settle groups of one locally, make room
for the result and hand a `Call` to `post`, which is all that a transport implements besides its
bookkeeping. A group is a pair of an axis and a lane; calls of one group complete in the order in
which they were posted, the same on every member, and calls of different groups are independent.
Messages go from one member of a group to another: the i-th send of a pair on a link meets its i-th
receive, whatever else either of them has posted.

The bytes in the Communicates sections are those that a rank receives; `n` is the size of the
group, `b` the bytes of `x`. Tensors whose dtype a wire does not know (8-bit floats) travel as a
`uint8` view.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from weft.comm.call import Call, Collective, output_shape
from weft.comm.handle import Finished, Handle
from weft.errors import CommunicationError

LANES = ("comm", "sync")
LINKS = ("forward", "backward", "forward_wrap", "backward_wrap")  # of messages: axis pp only


class Transport(ABC):
    """One rank's view of its groups.

    Every collective takes `x` as it is at the time of the call and must find it unchanged until
    its handle has been waited for. Results carry no autograd graph. In a group of one the result
    may be `x` itself, except of `all_reduce`.
    """

    @abstractmethod
    def group_size(self, axis: str) -> int:
        """How many ranks the group of this rank has on an axis."""

    @abstractmethod
    def group_rank(self, axis: str) -> int:
        """The position of this rank in its group on an axis."""

    @abstractmethod
    def barrier(self) -> None:
        """Returns when every rank of the world has called it."""

    @abstractmethod
    def close(self) -> None:
        """Gives back what the transport opened; no collective may be under way."""

    @abstractmethod
    def exposed_seconds(self) -> float:
        """Host seconds spent blocked in `wait` since the last reset."""

    @abstractmethod
    def reset_exposed(self) -> None:
        """Starts `exposed_seconds` again from zero."""

    @abstractmethod
    def describe(self) -> str:
        """What carries the collectives, as a run says it when it starts."""

    @abstractmethod
    def sums_on_arrival(self) -> bool:
        """Whether `all_to_all_sum` rounds each piece as it leaves and adds it when it arrives, or
        is an all-to-all with a rounding before and a sum behind.
        """

    @abstractmethod
    def post(self, call: Call, x: Tensor, out: Tensor) -> Handle:
        """Starts a collective of two or more ranks; the handle returns `out`, filled.

        `x` is contiguous and checked; `out` has the shape of the result. Called by the collectives
        below, not by users.
        """

    @final
    def all_to_all(
        self,
        x: Tensor,
        *,
        axis: str,
        label: str,
        lane: str = "comm",
        out: Tensor | None = None,
    ) -> Handle:
        """Exchanges `n` equal blocks of dim 0: block `j` goes to position `j` of the group. The
        result is written to `out`, where given, which does not overlap `x`.

        Shapes: [n b, ...] -> [n b, ...].

        Communicates: all-to-all over `axis`, `b (n-1) / n` bytes a rank.

        Raises:
            CommunicationError: `n` does not divide dim 0.
        """
        _check_divisible(self, x, axis=axis, label=label)
        return _issue(self, Collective.ALL_TO_ALL, x, axis=axis, label=label, lane=lane, out=out)

    @final
    def all_to_all_sum(
        self,
        x: Tensor,
        out: Tensor,
        *,
        wire: torch.dtype,
        axis: str,
        label: str,
        lane: str = "comm",
    ) -> Handle:
        """Exchanges `n` equal blocks, rounded to the dtype `wire`, and sums those that arrive into
        `out`, which may be the own block of `x`.

        Shapes: x [n z], out [z].

        Communicates: all-to-all over `axis`, `b (n-1) / n` bytes a rank, with `x` in the wire's
        dtype.

        Numerics: each term is rounded once, the own one too; summed in rank order in FP32, which is
        not rounded to the wire's dtype. In a group of one nothing is rounded.

        Raises:
            CommunicationError: `n` does not divide dim 0.
        """
        _check_divisible(self, x, axis=axis, label=label)
        return _issue(
            self,
            Collective.ALL_TO_ALL_SUM,
            x,
            axis=axis,
            label=label,
            lane=lane,
            out=out,
            wire=wire,
        )

    @final
    def all_to_all_rows(
        self,
        x: Tensor,
        send: tuple[int, ...],
        receive: tuple[int, ...],
        *,
        axis: str,
        label: str,
        lane: str = "comm",
    ) -> Handle:
        """Exchanges ragged rows of dim 0: the next `send[j]` of them go to position `j`.

        Shapes: [sum(send), ...] -> [sum(receive), ...], any of the numbers may be zero.

        Communicates: all-to-all over `axis`, the bytes of the rows received from other ranks.

        Raises:
            CommunicationError: the splits do not fit the group, the rows, or each other.
        """
        _check_splits(self, x, send, receive, axis=axis, label=label)
        return _issue(
            self,
            Collective.ALL_TO_ALL_ROWS,
            x,
            axis=axis,
            label=label,
            lane=lane,
            send=tuple(send),
            receive=tuple(receive),
        )

    @final
    def all_gather(self, x: Tensor, *, axis: str, label: str, lane: str = "comm") -> Handle:
        """Joins the `x` of all members along dim 0, in group order.

        Shapes: [b, ...] -> [n b, ...].

        Communicates: all-gather over `axis`, `b (n-1)` bytes a rank.
        """
        return _issue(self, Collective.ALL_GATHER, x, axis=axis, label=label, lane=lane)

    @final
    def reduce_scatter(self, x: Tensor, *, axis: str, label: str, lane: str = "comm") -> Handle:
        """Sums over the members and returns this rank's block of dim 0.

        Shapes: [n b, ...] -> [b, ...].

        Communicates: reduce-scatter over `axis`, `b (n-1) / n` bytes a rank.

        Numerics: summed in rank order in FP32, rounded once to the dtype of `x` (`nccl`: in its own
        dtype and fixed order).

        Raises:
            CommunicationError: `n` does not divide dim 0.
        """
        _check_divisible(self, x, axis=axis, label=label)
        return _issue(self, Collective.REDUCE_SCATTER, x, axis=axis, label=label, lane=lane)

    @final
    def all_reduce(self, x: Tensor, *, axis: str, label: str, lane: str = "comm") -> Handle:
        """Sums over the members into a new tensor; meant for short vectors (loads, statistics).

        Communicates: all-reduce over `axis`, `2 b (n-1) / n` bytes a rank, rounded down.

        Numerics: summed in rank order in FP32, rounded once to the dtype of `x` (`nccl`: in its own
        dtype and fixed order).
        """
        return _issue(self, Collective.ALL_REDUCE, x, axis=axis, label=label, lane=lane)

    @final
    def all_gather_into(
        self, bucket: Tensor, x: Tensor, *, axis: str, label: str, lane: str = "comm"
    ) -> Handle:
        """Joins the 1-D shards of all members into `bucket`, in place, and returns it.

        Shapes: bucket [n b], x [b].

        Communicates: all-gather over `axis`, `b (n-1)` bytes a rank, with `x` in the bucket's
        dtype; counted as `all_gather`.

        Numerics: `x` is rounded to the dtype of the bucket before it travels.

        Raises:
            CommunicationError: the bucket is not contiguous or does not hold exactly the shards.
        """
        _check_bucket(self, bucket, x, axis=axis, label=label)
        shard = x.to(bucket.dtype)
        return _issue(
            self,
            Collective.ALL_GATHER,
            shard,
            axis=axis,
            label=label,
            lane=lane,
            out=bucket.detach(),
        )

    @final
    def send(self, x: Tensor, *, peer: int, axis: str, label: str, lane: str) -> Handle:
        """Sends `x` to the member at position `peer`; the handle returns `x` once it has left.

        Communicates: a message over `axis`, no bytes received.

        Raises:
            CommunicationError: the peer is this rank, or there is no such member.
        """
        x = x.detach().contiguous()
        call = _message(self, Collective.SEND, x, peer=peer, axis=axis, label=label, lane=lane)
        return self.post(call, x, x)

    @final
    def receive(self, like: Tensor, *, peer: int, axis: str, label: str, lane: str) -> Handle:
        """Receives what the member at position `peer` sends: shape, dtype and device of `like`.

        Communicates: a message over `axis`, all its bytes.

        Raises:
            CommunicationError: the peer is this rank, or there is no such member.
        """
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        call = _message(self, Collective.RECEIVE, out, peer=peer, axis=axis, label=label, lane=lane)
        return self.post(call, out, out)


def _message(
    transport: Transport,
    collective: Collective,
    x: Tensor,
    *,
    peer: int,
    axis: str,
    label: str,
    lane: str,
) -> Call:
    assert lane in LINKS, f"{lane=} is not one of {LINKS}"
    n, own = transport.group_size(axis), transport.group_rank(axis)
    if peer == own or not 0 <= peer < n:
        raise CommunicationError(
            f"{label!r} over {axis}: position {own} of {n} cannot exchange a message with position "
            f"{peer}; name another member"
        )
    return Call(
        collective=collective,
        axis=axis,
        lane=lane,
        label=label,
        shape=tuple(x.shape),
        dtype=x.dtype,
        peer=peer,
    )


def _issue(
    transport: Transport,
    collective: Collective,
    x: Tensor,
    *,
    axis: str,
    label: str,
    lane: str,
    send: tuple[int, ...] = (),
    receive: tuple[int, ...] = (),
    out: Tensor | None = None,
    wire: torch.dtype | None = None,
) -> Handle:
    assert lane in LANES, f"{lane=} is not one of {LANES}"
    x = x.detach().contiguous()
    n = transport.group_size(axis)
    if n == 1:
        return Finished(_alone(collective, x, out))
    call = Call(
        collective=collective,
        axis=axis,
        lane=lane,
        label=label,
        shape=tuple(x.shape),
        dtype=wire or x.dtype,
        send=send,
        receive=receive,
    )
    return transport.post(call, x, x.new_empty(output_shape(call, n)) if out is None else out)


def _alone(collective: Collective, x: Tensor, out: Tensor | None) -> Tensor:
    if out is not None:
        return out if out.data_ptr() == x.data_ptr() else out.copy_(x)
    return x.clone() if collective is Collective.ALL_REDUCE else x


def _check_divisible(transport: Transport, x: Tensor, *, axis: str, label: str) -> None:
    n = transport.group_size(axis)
    if x.shape[0] % n:
        raise CommunicationError(
            f"{label!r} over {axis}: dim 0 of {list(x.shape)} does not divide into {n} equal "
            "blocks; pad it, or use all_to_all_rows"
        )


def _check_splits(
    transport: Transport,
    x: Tensor,
    send: tuple[int, ...],
    receive: tuple[int, ...],
    *,
    axis: str,
    label: str,
) -> None:
    n, own = transport.group_size(axis), transport.group_rank(axis)
    if len(send) != n or len(receive) != n:
        raise CommunicationError(
            f"{label!r} over {axis}: {len(send)} send and {len(receive)} receive splits "
            f"for {n} ranks; give one number a rank"
        )
    if sum(send) != x.shape[0] or min(*send, *receive) < 0 or send[own] != receive[own]:
        raise CommunicationError(
            f"{label!r} over {axis}: position {own} has {x.shape[0]} rows, sends {send}, "
            f"receives {receive}; the sends must add up to the rows, "
            "and what a rank keeps is the same in both"
        )


def _check_bucket(
    transport: Transport, bucket: Tensor, x: Tensor, *, axis: str, label: str
) -> None:
    n = transport.group_size(axis)
    if bucket.shape != (n * x.numel(),) or x.dim() != 1 or not bucket.is_contiguous():
        raise CommunicationError(
            f"{label!r} over {axis}: {n} shards of {list(x.shape)} do not fill a bucket "
            f"of {list(bucket.shape)} (contiguous: {bucket.is_contiguous()}); a bucket is one "
            f"contiguous dim of {n} times the shard"
        )

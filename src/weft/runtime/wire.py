"""The bodies of collectives: the vocabulary's communication operators over one rank's transport.

Each returns a handle; the executor posts and waits. This is also where named host synchronisations
meet their sizes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from weft.comm.handle import Handle
from weft.comm.transport import Transport
from weft.graph.program import USUAL_LANE
from weft.ops.fp8 import packet_rows
from weft.parallel.sync import Wire
from weft.runtime.closures import Body


def collective_bodies(transport: Transport) -> Mapping[str, Callable[..., Handle]]:
    """A body for every operator of the communication lane."""

    def rows(
        x: Tensor, splits: Any, *, axis: str, label: str, reverse: bool, lane: str = USUAL_LANE
    ) -> Handle:
        send, receive = splits.send, splits.receive
        if reverse:
            send, receive = receive, send
        return transport.all_to_all_rows(
            x.contiguous(), send, receive, axis=axis, label=label, lane=lane
        )

    def groups(
        x: Tensor,
        splits: Any,
        *,
        axis: str,
        label: str,
        reverse: bool,
        group: int,
        lane: str = USUAL_LANE,
    ) -> Handle:
        send, receive = (
            tuple(packet_rows(n, group) for n in rows) for rows in (splits.send, splits.receive)
        )
        if reverse:
            send, receive = receive, send
        return transport.all_to_all_rows(x, send, receive, axis=axis, label=label, lane=lane)

    def even(x: Tensor, *, axis: str, label: str, lane: str = USUAL_LANE) -> Handle:
        return transport.all_to_all(x.contiguous(), axis=axis, label=label, lane=lane)

    def gather(x: Tensor, *, axis: str, label: str, lane: str = USUAL_LANE) -> Handle:
        return transport.all_gather(x.contiguous(), axis=axis, label=label, lane=lane)

    def scatter(x: Tensor, *, axis: str, label: str, lane: str = USUAL_LANE) -> Handle:
        return transport.reduce_scatter(x.contiguous(), axis=axis, label=label, lane=lane)

    def reduce(x: Tensor, *, axis: str, label: str, lane: str = USUAL_LANE) -> Handle:
        return transport.all_reduce(x, axis=axis, label=label, lane=lane)

    def statistics(
        stats: Tensor, _norm2: Tensor, *, axis: str, label: str, lane: str = USUAL_LANE
    ) -> Handle:
        return transport.all_reduce(
            stats, axis=axis, label=label, lane=lane
        )  # the norm is a view of it

    def counts(x: Tensor, *, axis: str, label: str, lane: str = USUAL_LANE) -> Handle:
        return Reshaped(
            transport.all_to_all(x, axis=axis, label=label, lane=lane), transport.group_size(axis)
        )

    def exchange_grad(
        sent: Tensor, grad: Tensor, *, axis: str, label: str, lane: str = USUAL_LANE
    ) -> Handle:
        room = grad.view(sent.dtype)[sent.numel() : 2 * sent.numel()]
        return transport.all_to_all(sent, axis=axis, label=label, lane=lane, out=room)

    def pass_on(partial: Tensor, *, axis: str, label: str, lane: str = USUAL_LANE) -> Handle:
        n, own = transport.group_size(axis), transport.group_rank(axis)
        send, receive = (
            tuple(partial.numel() * (rank == (own + way) % n) for rank in range(n))
            for way in (1, -1)
        )
        return transport.all_to_all_rows(partial, send, receive, axis=axis, label=label, lane=lane)

    def gather_block(
        updated: Tensor,
        bucket: Tensor,
        *,
        axis: str,
        label: str,
        first: int,
        lane: str = USUAL_LANE,
    ) -> Handle:
        block = bucket[first : first + transport.group_size(axis) * updated.numel()]
        return transport.all_gather_into(block, updated, axis=axis, label=label, lane=lane)

    def gather_params(
        updated: Tensor, bucket: Tensor, *, axis: str, label: str, lane: str = USUAL_LANE
    ) -> Handle:
        return transport.all_gather_into(bucket, updated, axis=axis, label=label, lane=lane)

    return {
        "send": transport.send,
        "receive": transport.receive,
        "sum_ends": reduce,
        "all_to_all": even,
        "all_to_all_counts": counts,
        "all_to_all_rows": rows,
        "all_to_all_weights": rows,
        "all_to_all_choices": rows,
        "all_to_all_packets": rows,
        "all_to_all_groups": groups,
        "all_to_all_blocks": even,
        "all_gather_packets": gather,
        "all_gather": gather,
        "all_gather_weights": gather,
        "all_gather_experts": gather,
        "reduce_scatter": scatter,
        "reduce_scatter_weights": scatter,
        "reduce_scatter_grad": scatter,
        "all_to_all_grad": exchange_grad,
        "pass_on": pass_on,
        "sum_load": reduce,
        "sum_statistics": statistics,
        "gather_block": gather_block,
        "gather_params": gather_params,
    }


def wired(bodies: Mapping[str, Body], transport: Transport, gradients: Wire) -> Mapping[str, Body]:
    """The bodies of a rank with those of its collectives; a transport that sums what arrives has
    no need of the operators around its exchange of gradients.
    """
    collectives = collective_bodies(transport)
    if gradients is not Wire.BF16 or not transport.sums_on_arrival():
        return {**bodies, **collectives}
    return {**bodies, **collectives, **summing_bodies(transport)}


def summing_bodies(transport: Transport) -> Mapping[str, Body]:
    """One exchange in place of a rounding, an exchange and a sum; the shard lies where the own
    block was.
    """

    def exchange_sum(
        sent: Tensor, grad: Tensor, *, axis: str, label: str, lane: str = USUAL_LANE
    ) -> Handle:
        own = grad.view(transport.group_size(axis), -1)[transport.group_rank(axis)]
        return transport.all_to_all_sum(
            sent, own, wire=torch.bfloat16, axis=axis, label=label, lane=lane
        )

    def pass_grad(grad: Tensor) -> Tensor:
        return grad

    def take_shard(received: Tensor, grad: Tensor, *, ranks: int) -> Tensor:  # noqa: ARG001
        return received

    return {
        "encode_grad": pass_grad,
        "all_to_all_grad": exchange_sum,
        "decode_grad": take_shard,
    }


class Reshaped(Handle):
    """Counts by expert, seen as [source rank, local expert] once they are here."""

    def __init__(self, inner: Handle, ranks: int) -> None:
        self.inner = inner
        self.ranks = ranks

    def ready(self) -> bool:
        """Whether the counts are here."""
        return self.inner.ready()

    def wait(self) -> Tensor:
        """Shapes: [Y, L]."""
        return self.inner.wait().view(self.ranks, -1)

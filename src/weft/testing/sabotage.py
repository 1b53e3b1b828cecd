"""Faults that a proof must find, each a value that stands where the honest one would.

sync      the transport of one rank keeps its own term where one bucket's gradients should be summed
nodes     the same between nodes only: one rank keeps the sum of its own node
experts   two experts of one rank trade places after initialisation
chunks    two chunks of one rank of a pipeline trade their first layers
order     the batches of one rank come from one sample further on
balance   the balance losses of every rank are multiplied by the degree of data parallelism
drop      the first choice of one rank's tokens gets no row, and is not counted as dropped
scale     one rank applies the scales of what arrives in eight bits twice
doubled   one rank adds the gradient of its experts' second weight twice

Nothing outside this file knows that they exist.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from weft.comm.call import Call, Collective
from weft.comm.handle import Finished, Handle
from weft.comm.transport import Transport
from weft.compose.plan import Plan
from weft.compose.segment import short
from weft.compose.stage import chunks_of
from weft.config.run import RunConfig
from weft.data.batches import Batches, MicroBatch
from weft.model.families import Kind
from weft.ops.fp8 import SCALE, packet_rows
from weft.ops.rows import Splits
from weft.runtime.batch import Batch
from weft.runtime.batch import stage as stage_batch
from weft.runtime.closures import Body
from weft.runtime.stage import Stage
from weft.runtime.state import copy_to_master
from weft.trainer.feed import Feed

Bodies = Mapping[str, Body]
Load = Callable[[Plan, int], list[Batch]]  # a rank's batches of a step; steps count from 0

CULPRIT = 1  # the rank that misbehaves: every layout of more than one rank has it
_DROPPED = 1  # the last layer's first bucket; that of the head is summed before it
_CPU = torch.device("cpu")


def honest_wire(transport: Transport, _rank: int) -> Transport:
    """The transport itself."""
    return transport


def honest_start(_stage: Stage) -> None:
    """Leaves the initial state as it is."""


def honest_plan(plan: Plan) -> Plan:
    """The plan itself."""
    return plan


def honest_bodies(bodies: Bodies, _rank: int) -> Bodies:
    """The bodies themselves."""
    return bodies


def honest_feed(feed: Feed, _config: RunConfig) -> Load:
    """The batches of a feed."""
    return lambda plan, step: feed.load(plan, step, _CPU)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sabotage:
    """What stands between a rank and its wire, its initial state, batches, plan and bodies."""

    wire: Callable[[Transport, int], Transport] = honest_wire
    start: Callable[[Stage], None] = honest_start
    feed: Callable[[Feed, RunConfig], Load] = honest_feed
    plan: Callable[[Plan], Plan] = honest_plan
    bodies: Callable[[Bodies, int], Bodies] = honest_bodies


HONEST = Sabotage()


# ---- sync ----------------------------------------------------------------------------------------


def drop_sync(transport: Transport, rank: int) -> Transport:
    """The transport, which on one rank once returns the rank's own gradients unsummed."""
    return Unsummed(transport) if rank == CULPRIT else transport


def drop_nodes(transport: Transport, rank: int) -> Transport:
    """The transport, which on one rank once returns the sum of its own node."""
    return Unsummed(transport, between="_inter") if rank == CULPRIT else transport


@final
class Unsummed(Transport):
    """Takes part in every collective, and once keeps its own term of a sum of gradients: the second
    one on the axes whose name ends as `between` says.
    """

    def __init__(self, inner: Transport, *, between: str = "") -> None:
        self._inner = inner
        self._between = between
        self._sums = 0

    def group_size(self, axis: str) -> int:
        return self._inner.group_size(axis)

    def group_rank(self, axis: str) -> int:
        return self._inner.group_rank(axis)

    def barrier(self) -> None:
        self._inner.barrier()

    def close(self) -> None:
        self._inner.close()

    def exposed_seconds(self) -> float:
        return self._inner.exposed_seconds()

    def reset_exposed(self) -> None:
        self._inner.reset_exposed()

    def describe(self) -> str:
        return self._inner.describe()

    def sums_on_arrival(self) -> bool:
        return self._inner.sums_on_arrival()

    def post(self, call: Call, x: Tensor, out: Tensor) -> Handle:
        handle = self._inner.post(call, x, out)
        sums = call.collective is Collective.REDUCE_SCATTER and call.label == "gradients"
        if not sums or not call.axis.endswith(self._between):
            return handle
        self._sums += 1
        if self._sums != _DROPPED + 1:
            return handle
        return _Instead(handle, x.chunk(self.group_size(call.axis))[self.group_rank(call.axis)])


@final
class _Instead(Handle):
    """Waits for a collective and returns something else."""

    def __init__(self, inner: Handle, result: Tensor) -> None:
        self._inner = inner
        self._result = Finished(result.clone())

    def ready(self) -> bool:
        return self._inner.ready()

    def wait(self) -> Tensor:
        self._inner.wait()
        return self._result.wait()


# ---- experts -------------------------------------------------------------------------------------


def swap_experts(stage: Stage) -> None:
    """Lets two experts of one rank's first routed layer trade places, if it has two."""
    plan = stage.plan
    if plan.rank != CULPRIT or plan.local_experts == 1:
        return
    layer = next(i for i in range(plan.shape.layers) if plan.shape.kind(i) is not Kind.DENSE)
    for name in ("up", "down"):
        weight = stage.state.statics[f"param:layers.{layer}.{name}"]
        weight[:2] = weight[:2].flip(0)
    copy_to_master(stage.state)


# ---- chunks --------------------------------------------------------------------------------------


def swap_chunks(stage: Stage) -> None:
    """Lets the first layers of one rank's two chunks trade places, where they are alike."""
    plan, chunks = stage.plan, chunks_of(stage.plan)
    if plan.rank != CULPRIT or len(chunks) == 1:
        return
    here, there = (chunk.layers[0] for chunk in chunks[:2])
    statics = stage.state.statics
    for parameter in (p for p in stage.step.parameters if p.segment == f"layers.{here}"):
        other = statics.get(f"param:layers.{there}.{short(parameter)}")
        own = statics[f"param:{parameter.name}"]
        if other is not None and other.shape == own.shape:
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)
    copy_to_master(stage.state)


# ---- order ---------------------------------------------------------------------------------------


def shift_order(feed: Feed, config: RunConfig) -> Load:
    """The batches of a feed, which on one rank start one sample late."""
    ones = Batches(
        feed.streams[0],
        sequence=config.data.sequence,
        global_batch=1,
        micro_batch=1,
        seed=config.train.seed,
    )

    def load(plan: Plan, step: int) -> list[Batch]:
        if plan.rank != CULPRIT:
            return feed.load(plan, step, _CPU)
        dp_rank = plan.layout.dp_rank(plan.rank)
        local, size = plan.local_micro_batches, plan.micro_batch
        first = (step * plan.micro_batches + dp_rank * local) * size + 1
        samples = [ones.load(first + i, 0) for i in range(local * size)]
        joined = [join(samples[m * size : (m + 1) * size]) for m in range(local)]
        return [stage_batch(b, plan.share, device=_CPU) for b in joined]

    return load


def join(samples: Sequence[MicroBatch]) -> MicroBatch:
    """Several micro-batches as one."""
    starts = np.cumsum([0, *(len(sample.tokens) for sample in samples)]).tolist()
    return MicroBatch(
        tokens=np.concatenate([sample.tokens for sample in samples]),
        targets=np.concatenate([sample.targets for sample in samples]),
        positions=np.concatenate([sample.positions for sample in samples]),
        ends=tuple(s + e for s, x in zip(starts, samples, strict=False) for e in x.ends),
    )


# ---- balance and drop ----------------------------------------------------------------------------


def scale_balance(plan: Plan) -> Plan:
    """The plan whose balance losses are each summed over as many micro-batches as a rank has."""
    a, dp = plan.arithmetic, plan.layout.dp
    coefs = ("device_coef", "sequence_coef", "global_coef")
    more = {name: getattr(a.balance, name) * dp for name in coefs}
    balance = replace(a.balance, **more)
    return replace(plan, arithmetic=replace(a, aux_coef=a.aux_coef * dp, balance=balance))


def drop_silently(bodies: Bodies, rank: int) -> Bodies:
    """Bodies of which, on one rank, the one that sums a token's rows passes by the first."""
    honest = bodies["gather_sum"]

    def careless(rows: Tensor, slot_row: Tensor, order: Tensor, **attributes: int) -> Tensor:
        slots = slot_row.clone()
        slots[0, 0] = -1
        return honest(rows, slots, order, **attributes)

    return {**bodies, "gather_sum": careless} if rank == CULPRIT else bodies


# ---- scale ---------------------------------------------------------------------------------------


def scale_twice(bodies: Bodies, rank: int) -> Bodies:
    """Bodies of which, on one rank, those that decode a packet find its scales squared."""
    if rank != CULPRIT:
        return bodies

    def by_row(name: str) -> Body:
        def decode(packet: Tensor, *, width: int, **rest: Any) -> Tensor:
            packet = packet.clone()
            packet[:, width:] = _squared(packet[:, width:])
            return bodies[name](packet, width=width, **rest)

        return decode

    def by_block(name: str) -> Body:
        def decode(packet: Tensor, *, ranks: int, rows: int, group: int, **rest: Any) -> Tensor:
            packet = _square_blocks(packet, (rows,) * ranks, group)
            return bodies[name](packet, ranks=ranks, rows=rows, group=group, **rest)

        return decode

    def ragged(packet: Tensor, splits: Splits, *, reverse: bool, group: int, **rest: Any) -> Tensor:
        packet = _square_blocks(packet, splits.send if reverse else splits.receive, group)
        return bodies["decode_channels"](packet, splits, reverse=reverse, group=group, **rest)

    return {
        **bodies,
        **{name: by_row(name) for name in ("decode_rows", "decode_row_sums")},
        **{name: by_block(name) for name in ("decode_blocks", "decode_block_sums")},
        "decode_channels": ragged,
    }


def _square_blocks(packet: Tensor, blocks: Sequence[int], group: int) -> Tensor:
    """Blocks whose scales, which stand behind their rows, are squared."""
    packet, end = packet.clone(), 0
    for rows in blocks:
        start, end = end + rows, end + packet_rows(rows, group)
        packet[start:end] = _squared(packet[start:end])
    return packet


def _squared(scales: Tensor) -> Tensor:
    """The bytes of squares of what is written in bytes."""
    numbers = scales.clone(memory_format=torch.contiguous_format).view(-1).view(SCALE)
    return numbers.square().view(torch.uint8).view(scales.shape)


def double_experts(bodies: Bodies, rank: int) -> Bodies:
    """Bodies of which, on one rank, those that make the gradient of `down` add it once more."""
    names = ("expert_down.wgrad", "expert_down.wgrad_first")
    again = bodies["expert_down.wgrad"]

    def eager(honest: Callable[..., Any]) -> Callable[..., Any]:
        def body(*operands: Any, **attributes: Any) -> Any:
            honest(*operands, **attributes)
            return again(*operands, **attributes)

        return body

    return {**bodies, **{n: eager(bodies[n]) for n in names}} if rank == CULPRIT else bodies


SABOTAGES: Mapping[str, Sabotage] = MappingProxyType(
    {
        "sync": Sabotage(wire=drop_sync),
        "nodes": Sabotage(wire=drop_nodes),
        "experts": Sabotage(start=swap_experts),
        "chunks": Sabotage(start=swap_chunks),
        "order": Sabotage(feed=shift_order),
        "balance": Sabotage(plan=scale_balance),
        "drop": Sabotage(bodies=drop_silently),
        "scale": Sabotage(bodies=scale_twice),
        "doubled": Sabotage(bodies=double_experts),
    }
)

"""The tensors that live as long as a run: parameters, gradients, optimizer shards, statistics.

Parameters and gradients are 16-byte aligned views of flat buffers, and so are the buckets in which
they are summed and gathered. The master weights are an FP32 shard; where the compute dtype is
already the accumulation dtype, they are the bucket's own elements, not a copy.

Initial values are drawn for each logical parameter by a generator keyed by (seed, name), on the
device: they depend on no layout, but on the kind of device.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

from weft.compose.plan import (
    AUX,
    LOSS,
    NORM2,
    OVERFLOW,
    drop_places,
    load_places,
    sizes,
    statistics_size,
)
from weft.compose.stage import is_copy
from weft.compose.step import Step
from weft.model.families import Shape
from weft.model.params import Init, Logical, Parameter
from weft.parallel.zero import Bucket, Buffer, Piece, decayed, pieces

KINDS = ("master", "mean", "square")


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """The compute dtype and the dtype of sums, promote(compute, float32)."""

    act: torch.dtype
    acc: torch.dtype


def precision(name: str) -> Precision:
    """The dtypes behind a recipe's word."""
    act = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[name]
    return Precision(act=act, acc=torch.promote_types(act, torch.float32))


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Every static tensor of one rank, by the key that instances use; `zeroed` are those that a
    step adds to before it has written them.
    """

    step: Step
    statics: Mapping[str, Any]
    stats: Tensor
    zeroed: tuple[Tensor, ...]

    def begin(self) -> None:
        """Clears what a step adds to; the other gradients hold what the last step left."""
        for tensor in self.zeroed:
            tensor.zero_()

    def forgive(self) -> None:
        """Clears what overflowed: until then every step is refused, on all ranks."""
        self.stats[OVERFLOW] = 0

    def shards(self) -> Iterator[tuple[str, Piece, Tensor]]:
        """Every piece of optimizer state this rank answers for: kind, logical range, elements."""
        plan = self.step.plan
        return self._pieces_of(b for b in self.step.buckets if not is_copy(plan, b.name))

    def held(self) -> Iterator[tuple[str, Piece, Tensor]]:
        """The same, and what it holds a copy of: all that is to be filled."""
        return self._pieces_of(self.step.buckets)

    def _pieces_of(self, buckets: Iterable[Bucket]) -> Iterator[tuple[str, Piece, Tensor]]:
        layout, rank = self.step.plan.layout, self.step.plan.rank
        for bucket in buckets:
            for piece in pieces(bucket, layout.replica(bucket.axis, rank)):
                for kind in KINDS:
                    flat = self.statics[f"{kind}:{bucket.name}"]
                    yield kind, piece, flat[piece.offset : piece.offset + piece.stop - piece.start]


def allocate(step: Step, *, device: torch.device) -> State:
    """All buffers of one rank, zero: fill them with `initialise` or from a checkpoint."""
    plan = step.plan
    dtypes = precision(plan.precision)
    statics: dict[str, Any] = {}
    buffers = {bucket.buffer.name: bucket.buffer for bucket in step.buckets}
    memories = {
        buffer.memory: torch.zeros(buffer.numel, dtype=dtypes.acc, device=device)
        for buffer in buffers.values()
    }
    flats = {
        name: _allocate_buffer(statics, buffer, memories[buffer.memory], dtypes.act)
        for name, buffer in buffers.items()
    }
    for bucket in step.buckets:
        place = plan.layout.replica(bucket.axis, plan.rank)
        grads = memories[bucket.buffer.memory]
        _allocate_shard(statics, bucket, place, flats[bucket.buffer.name], grads)
        if plan.sync.zero > 1:
            statics[f"shard:{bucket.name}"] = grads.new_zeros(bucket.shard)
    zeroed = [memories[name][r.start : r.stop] for name, rs in step.zeroed.items() for r in rs]
    zeroed += [v for k, v in statics.items() if k.startswith("shard:")]
    stats = torch.zeros(statistics_size(plan.shape), dtype=dtypes.acc, device=device)
    zeroed.append(stats[:OVERFLOW])
    statics.update(_statistics(stats, plan.shape))
    statics.update(_balance(plan.shape, dtypes.acc, device))
    # what a stage receives, its shape and dtype alone: one element seen as all
    boundary = torch.zeros((), dtype=dtypes.act, device=device)
    statics["shape:boundary"] = boundary.expand(sizes(plan).shape("T D"))
    return State(step=step, statics=statics, stats=stats, zeroed=tuple(zeroed))


def _allocate_buffer(
    statics: dict[str, Any], buffer: Buffer, grads: Tensor, act: torch.dtype
) -> Tensor:
    """The parameters of a buffer, and the views of each parameter and its gradient."""
    flat = torch.zeros(buffer.numel, dtype=act, device=grads.device)
    for slot in buffer.slots:
        parameter = slot.parameter
        place = slice(slot.start, slot.start + parameter.numel)
        statics[f"param:{parameter.name}"] = flat[place].view(parameter.shape)
        statics[f"grad:{parameter.name}"] = grads[place].view(parameter.shape)
    return flat


def _allocate_shard(
    statics: dict[str, Any], bucket: Bucket, place: int, flat: Tensor, grads: Tensor
) -> None:
    """The views of a bucket, and the optimizer state of the shard that this replica owns."""
    whole, owned = slice(bucket.start, bucket.start + bucket.numel), bucket.owned(place)
    own = slice(owned.start, owned.stop)
    statics[f"bucket:{bucket.name}"] = flat[whole]
    statics[f"gradients:{bucket.name}"] = grads[whole]
    statics[f"own:{bucket.name}"] = flat[own]
    statics[f"decay:{bucket.name}"] = decayed(bucket, place)
    statics[f"master:{bucket.name}"] = flat[own].to(grads.dtype)  # a view where the dtypes agree
    for kind in ("mean", "square"):
        statics[f"{kind}:{bucket.name}"] = torch.zeros_like(grads[own])


def _balance(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """What a step leaves to the next one beside parameters: all layers in one, each by itself."""
    named: dict[str, Tensor] = {}
    for many, one in (("biases", "router_bias"), ("pasts", "past_load")):
        whole = torch.zeros(shape.layers, shape.experts, dtype=dtype, device=device)
        named[f"balance:{many}"] = whole
        named.update({f"state:layers.{i}.{one}": row for i, row in enumerate(whole)})
    return named


def _statistics(stats: Tensor, shape: Shape) -> dict[str, Tensor]:
    tallies = stats[load_places(shape)].view(shape.layers, shape.experts)
    named = {f"stats:tally.layers.{i}": row for i, row in enumerate(tallies)}
    drops = stats[drop_places(shape)].view(shape.layers, 1)
    named.update({f"stats:dropped.layers.{i}": row for i, row in enumerate(drops)})
    named["stats:stats"] = stats
    named["stats:loss"] = stats[LOSS : LOSS + 1]
    named["stats:losses"] = stats[AUX : AUX + 2]
    named["stats:norm2"] = stats[NORM2 : NORM2 + 1]
    named["stats:overflow"] = stats[OVERFLOW:]
    return named


def with_own_statistics(state: State) -> State:
    """The same parameters with statistics of its own, so that evaluating disturbs nothing."""
    stats = torch.zeros_like(state.stats)
    statics = {**state.statics, **_statistics(stats, state.step.plan.shape)}
    return State(step=state.step, statics=statics, stats=stats, zeroed=(stats,))


def initialise(state: State, *, seed: int) -> None:
    """Draws every parameter; each logical one from its own generator."""
    shape = state.step.plan.shape
    for parameter in state.step.parameters:
        flat = state.statics[f"param:{parameter.name}"].view(-1)
        for part in parameter.parts:
            std = _deviation(parameter, shape.init_std, shape.layers)
            mean = float(parameter.init is Init.ONES)
            drawn = _draw(part, mean, std, seed, flat.device)
            flat[part.start : part.stop] = held(part, drawn)
    copy_to_master(state)


def _deviation(parameter: Parameter, std: float, layers: int) -> float:
    match parameter.init:
        case Init.ONES | Init.ZEROS:
            return 0.0
        case Init.NORMAL:
            return std
        case Init.SCALED:
            return std / sqrt(2 * layers)


def _draw(part: Logical, mean: float, std: float, seed: int, device: torch.device) -> Tensor:
    count = prod(part.shape)
    if std == 0:
        return torch.full((count,), mean, device=device)
    key = hashlib.blake2b(f"{seed}/{part.name}".encode(), digest_size=7).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(key, "little"))
    return torch.randn(count, generator=generator, device=device).mul_(std)


def fill(state: State, read: Callable[[Logical], Tensor]) -> None:
    """Parameters from anywhere: `read` gives the values of a whole logical parameter."""
    for parameter in state.step.parameters:
        flat = state.statics[f"param:{parameter.name}"].view(-1)
        for part in parameter.parts:
            flat[part.start : part.stop].copy_(held(part, read(part)))
    copy_to_master(state)


def held(part: Logical, whole: Tensor) -> Tensor:
    """The rows and columns of a logical parameter that a part is, flat."""
    rows, columns = part.rows, part.columns
    matrix = whole.reshape(part.shape[0], -1)
    return matrix[rows.start : rows.stop, columns.start : columns.stop].reshape(-1)


def copy_to_master(state: State) -> None:
    """Sets each master shard to the parameters it owns."""
    plan = state.step.plan
    for bucket in state.step.buckets:
        owned = bucket.owned(plan.layout.replica(bucket.axis, plan.rank))
        flat = state.statics[f"bucket:{bucket.name}"]
        own = flat[owned.start - bucket.start : owned.stop - bucket.start]
        master = state.statics[f"master:{bucket.name}"]
        if master.data_ptr() != own.data_ptr():
            master.copy_(own)

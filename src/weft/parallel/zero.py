"""Flat buckets: how parameters, gradients and optimizer state lie in memory and are cut (ZeRO).

    buffer   the dense or the expert parameters of one segment end to end, what decays first
    bucket   a stretch of a buffer of bounded size: what is summed, updated and gathered at once
    shard    what one replica owns of a bucket

Every parameter starts at a multiple of 16 bytes; a buffer is padded so that each replica owns an
equal shard of each bucket. Gradients are summed over the replicas to their owners, an owner updates
its shard, the parameters are gathered back (`parallel.sync`). A bucket ends where it must, in the
middle of a parameter too: several make the pipeline in which the wires inside and between nodes
work at once.

Paper: 1.4 (dense over dp x sp, experts over their replicas, what is cut over sp over dp).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

from weft.parallel.layout import Layout, Leg
from weft.parallel.sync import shard_index

ALIGNMENT = 8  # elements: 16 bytes of bfloat16
# Elements of a bucket that nobody else holds: 512 MB of FP32, of which a plain body makes a few.
# Each bucket costs two launches of the update.
ALONE = 2**27


class Part(Protocol):
    """A named flat range of a parameter, and the ranges of the whole that lie in it in a row."""

    @property
    def name(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def runs(self) -> Iterator[range]: ...


class Tensor(Protocol):
    """What a bucket needs to know of a parameter."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def numel(self) -> int: ...
    @property
    def segment(self) -> str: ...
    @property
    def residence(self) -> str: ...
    @property
    def decays(self) -> bool: ...
    @property
    def parts(self) -> Sequence[Part]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A parameter's place in its buffer."""

    parameter: Tensor
    start: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Buffer:
    """Parameters end to end: their slots, the padded size, where decay ends, and the memory in
    which their gradients are accumulated.
    """

    name: str
    memory: str
    axis: str
    slots: tuple[Slot, ...]
    numel: int
    decay_stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """The elements [start, start + numel) of a buffer, and the legs between its replicas."""

    name: str
    buffer: Buffer
    start: int
    numel: int
    legs: tuple[Leg, ...]

    @property
    def axis(self) -> str:
        return self.buffer.axis

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots of the buffer that lie in the bucket, whole or in part."""
        stop = self.start + self.numel
        return tuple(
            slot
            for slot in self.buffer.slots
            if slot.start < stop and slot.start + slot.parameter.numel > self.start
        )

    @property
    def shard(self) -> int:
        """Elements that one replica owns."""
        return self.numel // prod(leg.ranks for leg in self.legs)

    def owned(self, place: int) -> range:
        """The elements of the buffer that the replica at a place owns."""
        first = self.start + shard_index(self.legs, place) * self.shard
        return range(first, first + self.shard)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A flat range of a logical parameter and where it lies in a shard."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    offset: int


def buckets(
    parameters: Sequence[Tensor], layout: Layout, *, most: int, zero: int = 1
) -> tuple[Bucket, ...]:
    """The buckets of one rank's parameters, in order of use: of no more than `most` elements where
    they are summed over replicas, else only so many that the passes of the update stay short.

    With ZeRO-2 the gradients of layers of one size take turns in the memory of two.
    """
    groups: dict[tuple[str, str], list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.segment, str(parameter.residence)), []).append(parameter)
    laid = [
        _lay(f"{segment}.{axis}", axis, layout.degree(axis) * ALIGNMENT, members)
        for (segment, axis), members in groups.items()
    ]
    return tuple(
        bucket
        for buffer in (_share_memory(laid) if zero > 1 else laid)
        for bucket in _cut(buffer, layout.legs(buffer.axis), _most(layout, buffer, most))
    )


def _most(layout: Layout, buffer: Buffer, most: int) -> int:
    return max(most, ALONE) if layout.degree(buffer.axis) == 1 else most


def _share_memory(laid: Sequence[Buffer]) -> Iterator[Buffer]:
    """Two memories for all buffers of one size: one is accumulated in, the other on the wire."""
    met: Counter[tuple[str, int]] = Counter()
    for buffer in laid:
        alike = buffer.axis, buffer.numel
        yield replace(buffer, memory=f"{buffer.axis}.{buffer.numel}.{met[alike] % 2}")
        met[alike] += 1


def gradient_elements(made: Sequence[Bucket], *, zero: int) -> int:
    """Elements of gradients that a rank holds: each memory once, and with ZeRO-2 its shards.

    With ZeRO-1 P; with ZeRO-2 P / (replicas) + twice the largest layer, the embedding and the head.
    """
    memories = {bucket.buffer.memory: bucket.buffer.numel for bucket in made}
    return sum(memories.values()) + (zero > 1) * sum(bucket.shard for bucket in made)


def _lay(name: str, axis: str, unit: int, members: list[Tensor]) -> Buffer:
    slots: list[Slot] = []
    end = decay_stop = 0
    for parameter in sorted(members, key=lambda p: not p.decays):
        slots.append(Slot(parameter=parameter, start=end))
        end += _aligned(parameter.numel, ALIGNMENT)
        if parameter.decays:
            decay_stop = end
    return Buffer(
        name=name,
        memory=name,
        axis=axis,
        slots=tuple(slots),
        numel=_aligned(end, unit),
        decay_stop=decay_stop,
    )


def _cut(buffer: Buffer, legs: tuple[Leg, ...], most: int) -> Iterator[Bucket]:
    """A buffer as few buckets of about one size, each a whole number of aligned shards."""
    unit = prod(leg.ranks for leg in legs) * ALIGNMENT
    count = -(-buffer.numel // max(most, unit))
    size = _aligned(-(-buffer.numel // count), unit)
    for number, start in enumerate(range(0, buffer.numel, size)):
        yield Bucket(
            name=buffer.name if count == 1 else f"{buffer.name}.{number}",
            buffer=buffer,
            start=start,
            numel=min(size, buffer.numel - start),
            legs=legs,
        )


def pieces(bucket: Bucket, place: int) -> Iterator[Piece]:
    """The logical ranges that lie in the shard of the replica at a place."""
    own = bucket.owned(place)
    for slot in bucket.buffer.slots:
        for part in slot.parameter.parts:
            origin = slot.start + part.start
            if origin < own.stop and own.start < slot.start + part.stop:
                yield from _inside(part, origin, own)


def _inside(part: Part, start: int, own: range) -> Iterator[Piece]:
    """The runs of a part that starts there in its buffer, as far as an owner has them."""
    for run in part.runs():
        first, last = max(start, own.start), min(start + len(run), own.stop)
        if first < last:
            yield Piece(
                name=part.name,
                shape=tuple(part.shape),
                start=run.start + first - start,
                stop=run.start + last - start,
                offset=first - own.start,
            )
        start += len(run)


def decayed(bucket: Bucket, place: int) -> int:
    """How many leading elements of a shard decay."""
    own = bucket.owned(place)
    return min(max(bucket.buffer.decay_stop - own.start, 0), bucket.shard)


def _aligned(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

"""Flat buckets: how parameters, gradients and optimizer state lie in memory and are cut (ZeRO).

A bucket is the dense or the expert parameters of one segment, laid end to end, what decays first.
Every parameter starts at a multiple of 16 bytes; the whole is padded so that each replica owns an
equal shard. Gradients are summed by a reduce-scatter over the replicas, the owner updates its
shard, an all-gather brings the parameters back.

Paper: 1.4 (dense over dp x sp, experts over their replicas).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

ALIGNMENT = 8  # elements: 16 bytes of bfloat16


class Part(Protocol):
    """A named flat range of a parameter."""

    @property
    def name(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


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
    """A parameter's place in its bucket."""

    parameter: Tensor
    start: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """One flat buffer: its slots, its padded size, and where decay ends."""

    name: str
    axis: str
    degree: int
    slots: tuple[Slot, ...]
    numel: int
    decay_stop: int

    @property
    def shard(self) -> int:
        """Elements that one replica owns."""
        return self.numel // self.degree


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A flat range of a logical parameter and where it lies in a shard."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    offset: int


def buckets(parameters: Sequence[Tensor], degree: dict[str, int]) -> tuple[Bucket, ...]:
    """The buckets of one rank's parameters, in order of use; `degree` gives the replicas of each
    residence.
    """
    groups: dict[tuple[str, str], list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.segment, str(parameter.residence)), []).append(parameter)
    return tuple(
        _lay(f"{segment}.{axis}", axis, degree[axis], members)
        for (segment, axis), members in groups.items()
    )


def _lay(name: str, axis: str, degree: int, members: list[Tensor]) -> Bucket:
    slots: list[Slot] = []
    end = decay_stop = 0
    for parameter in sorted(members, key=lambda p: not p.decays):
        slots.append(Slot(parameter=parameter, start=end))
        end += _aligned(parameter.numel, ALIGNMENT)
        if parameter.decays:
            decay_stop = end
    return Bucket(
        name=name,
        axis=axis,
        degree=degree,
        slots=tuple(slots),
        numel=_aligned(end, degree * ALIGNMENT),
        decay_stop=decay_stop,
    )


def pieces(bucket: Bucket, position: int) -> Iterator[Piece]:
    """The logical ranges that lie in the shard of the replica at that position."""
    low, high = position * bucket.shard, (position + 1) * bucket.shard
    for slot in bucket.slots:
        for part in slot.parameter.parts:
            first = max(slot.start + part.start, low)
            last = min(slot.start + part.stop, high)
            if first < last:
                origin = slot.start + part.start
                yield Piece(
                    name=part.name,
                    shape=tuple(part.shape),
                    start=first - origin,
                    stop=last - origin,
                    offset=first - low,
                )


def decayed(bucket: Bucket, position: int) -> int:
    """How many leading elements of a shard decay."""
    return min(max(bucket.decay_stop - position * bucket.shard, 0), bucket.shard)


def _aligned(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

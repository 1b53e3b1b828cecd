"""Which piece of a step a rank of a pipeline does when: orders as values, built by pure functions.

A model is cut into `stages x chunks` virtual stages; chunk `c` of rank `r` is virtual stage
`c stages + r`. A step is, for every chunk and micro-batch, a forward (F), a backward (B) and, where
weight gradients are put off, a weight gradient (W).

    order         before the first B of rank r         bubble over (bubble + work)
    1f1b          p - r - 1 forwards                   (p - 1) / (m + p - 1)
    interleaved   2 (p - r - 1) + (v - 1) p            (p - 1) / (v m + p - 1)
    zero_bubble   as its base; W runs r B later        (p - 1) / (3 m + p - 1),   F = B = W, v = 1

p stages, m micro-batches, v chunks; communication takes no time. `interleaved` is Megatron's: the
forwards go round the chunks in groups of p micro-batches, so p must divide m.

Paper: 1.5. Zero bubble: Qi et al. 2023 (arXiv 2401.10241), schedule ZB-H1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

from weft.errors import LayoutError


class Pass(StrEnum):
    """What is done to a chunk: forward, backward, or its weight gradients alone."""

    FORWARD = "F"
    BACKWARD = "B"
    WEIGHT = "W"


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of a step: a pass over a chunk of this rank with one of its micro-batches."""

    kind: Pass
    chunk: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch}{'' if self.chunk == 0 else f'.{self.chunk}'}"


Order = tuple[Work, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """The name of an order and its degrees: all that the order of every rank follows from."""

    order: str = "1f1b"
    stages: int = 1
    chunks: int = 1
    micro_batches: int = 1

    @property
    def virtual_stages(self) -> int:
        return self.stages * self.chunks

    def virtual_stage(self, rank: int, chunk: int) -> int:
        """Where a chunk of a rank stands in the model."""
        return chunk * self.stages + rank

    @property
    def defers_weights(self) -> bool:
        """Whether weight gradients are pieces of their own."""
        return self.order == "zero_bubble"


def validate(pipeline: Pipeline) -> Pipeline:
    """The pipeline, if its order exists.

    Raises:
        LayoutError: chunks without an order for them, or micro-batches that do not go round.
    """
    p, v, m = pipeline.stages, pipeline.chunks, pipeline.micro_batches
    if pipeline.order == "1f1b" and v > 1:
        raise LayoutError(
            f"parallel.chunks = {v}: parallel.pipeline = '1f1b' runs one chunk a rank; "
            "try parallel.pipeline = 'interleaved'"
        )
    if p == 1 and v > 1:
        raise LayoutError(
            f"parallel.chunks = {v}: one stage has nothing to interleave; try parallel.chunks = 1"
        )
    if v > 1 and m % p:
        raise LayoutError(
            f"parallel.pp = {p} does not divide the {m} micro-batches of a rank, which chunks go "
            f"round in groups of pp; try {max(m // p, 1) * p} micro-batches, or parallel.chunks = 1"
        )
    return pipeline


def order_of(pipeline: Pipeline, rank: int) -> Order:
    """What a rank does, in order."""
    match validate(pipeline).order:
        case "1f1b" | "interleaved":
            return tuple(_alternating(pipeline, rank))
        case "zero_bubble":
            return tuple(_weights_deferred(_alternating(pipeline, rank), rank))
        case _:
            raise AssertionError(f"{pipeline.order=}")


def forwards(pipeline: Pipeline) -> Order:
    """The forward alone of every micro-batch, one after the other: evaluation."""
    return tuple(
        Work(Pass.FORWARD, chunk, m)
        for m in range(pipeline.micro_batches)
        for chunk in range(pipeline.chunks)
    )


def _alternating(pipeline: Pipeline, rank: int) -> Iterator[Work]:
    """Forwards until a backward can be expected, then one of each, then the backwards left."""
    ahead, back = _rounds(pipeline, Pass.FORWARD), _rounds(pipeline, Pass.BACKWARD)
    warm = min(_warm_up(pipeline, rank), len(ahead))
    pairs = zip(ahead[warm:], back, strict=False)
    return chain(ahead[:warm], chain.from_iterable(pairs), back[len(ahead) - warm :])


def _warm_up(pipeline: Pipeline, rank: int) -> int:
    p, v = pipeline.stages, pipeline.chunks
    return p - rank - 1 if v == 1 else 2 * (p - rank - 1) + (v - 1) * p


def _rounds(pipeline: Pipeline, kind: Pass) -> list[Work]:
    """Every chunk of p micro-batches, then of the next p; backwards from the last chunk."""
    p, v, m = pipeline.stages, pipeline.chunks, pipeline.micro_batches
    chunks = range(v) if kind is Pass.FORWARD else reversed(range(v))
    order = tuple(chunks)
    if v == 1:
        return [Work(kind, 0, i) for i in range(m)]
    return [
        Work(kind, chunk, i) for first in range(0, m, p) for chunk in order
        for i in range(first, first + p)
    ]  # fmt: skip


def _weights_deferred(order: Iterator[Work], delay: int) -> Iterator[Work]:
    """Each weight gradient `delay` backwards after its own, and the last ones at the end."""
    waiting: list[Work] = []
    for work in order:
        yield work
        if work.kind is Pass.BACKWARD:
            waiting.append(Work(Pass.WEIGHT, work.chunk, work.micro_batch))
            if len(waiting) > delay:
                yield waiting.pop(0)
    yield from waiting

"""One piece of a rank's step as instances of templates: a pass over a chunk with a micro-batch.

    forward     embedding (or the rotary table alone), the layers of the chunk
    backward    head (its forward with it), the layers from the last, embedding
    weight      what a divided backward has put off, in the same order

A value that travels between instances has a key: `m2.x.5` is what layer 5 reads of micro-batch 2,
`m2.d.x.5` its gradient, `m2.l5.lse` what the backward of layer 5 keeps of its forward.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from weft.compose.instance import Instance, instance_of
from weft.compose.stage import Chunk
from weft.graph.program import Program
from weft.model.families import Kind, Shape
from weft.schedule.pipeline import Pass, Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the pieces of a rank are made of: programs by name, and its chunks of the model."""

    shape: Shape
    programs: Mapping[str, Program]
    chunks: tuple[Chunk, ...]

    def layer(self, index: int, what: str) -> Program:
        """The program of a layer: `forward`, `backward`, or of a divided backward `weights`."""
        return self.programs[f"{self.shape.kind(index)}.{what}"]


def instances_of(parts: Parts, work: Work) -> Iterator[Instance]:
    """The instances of one piece of work, in order."""
    chunk, m = parts.chunks[work.chunk], work.micro_batch
    match work.kind:
        case Pass.FORWARD:
            if chunk.first or work.chunk == 0:
                yield _opening(parts, chunk, m)
            for i in chunk.layers:
                yield _forward(parts, i, m)
            if chunk.last and "head.evaluate" in parts.programs:
                yield _head(parts, "head.evaluate", m)
        case Pass.BACKWARD:
            if chunk.last:
                yield _head(parts, "head", m)
            for i in reversed(chunk.layers):
                yield _backward(parts, i, m)[0]
            if chunk.first and not _defers(parts):
                yield _embedding_backward(parts, m)
        case Pass.WEIGHT:
            for i in reversed(chunk.layers):
                yield _backward(parts, i, m)[1]
            if chunk.first:
                yield _embedding_backward(parts, m)


def _defers(parts: Parts) -> bool:
    return any(name.endswith(".weights") for name in parts.programs)


def _opening(parts: Parts, chunk: Chunk, m: int) -> Instance:
    """The first hidden state and the rotary table; the table alone where states are received."""
    program = parts.programs["embedding.forward" if chunk.first else "positions"]
    reads = {name: f"m{m}.{name}" for name in ("tokens", "positions")}
    keys = ("x.0", "cos", "sin")[-len(program.outputs) :]
    writes = {v: f"m{m}.{key}" for v, key in zip(program.outputs, keys, strict=True)}
    return instance_of(program, reads, writes, "")


def _forward(parts: Parts, i: int, m: int) -> Instance:
    program = parts.layer(i, "forward")
    reads = {name: f"m{m}.{name}" for name in ("cos", "sin", "segments")}
    reads["x"] = f"m{m}.x.{i}"
    reads["forced"] = f"m{m}.forced.{i}"
    writes = {program.outputs[0]: f"m{m}.x.{i + 1}"}
    if parts.shape.kind(i) is not Kind.DENSE:
        writes[program.outputs[-1]] = f"m{m}.experts.{i}"
    writes.update({name: f"m{m}.l{i}.{name}" for name in program.kept if name not in writes})
    return instance_of(program, reads, writes, f"layers.{i}")


def _head(parts: Parts, name: str, m: int) -> Instance:
    program, layers = parts.programs[name], parts.shape.layers
    reads = {"x": f"m{m}.x.{layers}", "targets": f"m{m}.targets", "divisor": "divisor"}
    writes = {"d.x": f"m{m}.d.x.{layers}"} if "d.x" in program.outputs else {}
    return instance_of(program, reads, writes, "")


def _backward(parts: Parts, i: int, m: int) -> tuple[Instance, ...]:
    """The backward of a layer: one instance, or what runs now and what is put off."""
    forward = parts.layer(i, "forward")
    ahead = _forward(parts, i, m)
    reads = {**ahead.reads, **{v: k for v, k in ahead.writes.items() if v in forward.kept}}
    reads[f"d.{forward.outputs[0]}"] = f"m{m}.d.x.{i + 1}"
    program = parts.layer(i, "backward")
    writes = {program.outputs[0]: f"m{m}.d.x.{i}"}
    at = f"layers.{i}"
    if not _defers(parts):
        return (instance_of(program, reads, writes, at),)
    later = parts.layer(i, "weights")
    crossing = {v: f"m{m}.l{i}.{v}" for v in later.inputs if v in program.outputs}
    keys = {**crossing, **reads, **writes}
    return tuple(
        instance_of(part, keys, {v: keys[v] for v in part.outputs if v in keys}, at)
        for part in (program, later)
    )


def _embedding_backward(parts: Parts, m: int) -> Instance:
    reads = {"d.x": f"m{m}.d.x.0", "tokens": f"m{m}.tokens"}
    return instance_of(parts.programs["embedding.backward"], reads, {}, "")


def gather(program: Program) -> Instance:
    """Parameters from the master weights of their owners."""
    return instance_of(program, {}, {}, "")


def update(program: Program) -> Instance:
    """The end of a step."""
    stats, verdict, *_ = program.outputs
    reads = {"rates": "rates", **{v: v for v in program.inputs if v.startswith("shard.")}}
    return instance_of(program, reads, {stats: "stats", verdict: "verdict"}, "")

"""What one rank finds when it runs every trial of a proof and compares itself with one rank alone.

    trial       runs in               against one rank
    float64     float64, 20 steps     sums of every step, gradients of the first
    replayed    float32, few steps    the same, with the experts that one rank chose
    natural     float32, few steps    how many tokens choose other experts than on one rank
    serial      float32, few steps    no two at once: the bits of `natural` (or both in float64)
    <routing>   float64, one step     sums and gradients under a generator of `testing.routing`
    <bytes>     bfloat16, one step    bytes received against bytes predicted
    rounded     float64, one step     where the recipe has eight bits: see `testing.rounded`

A whole gradient is on no rank: each says how far its own elements are off, `testing.weigh` adds up.
Findings are plain values, since those of another process come through a pipe.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft.compose.plan import Plan
from weft.parallel.layout import Layout
from weft.runtime.state import held
from weft.testing import rounded
from weft.testing.agreement import Trace
from weft.testing.crew import (
    Course,
    Crew,
    Run,
    Trial,
    digest,
    initial_parameters,
    plan_of,
    run,
    stacked_crew,
)
from weft.testing.routing import GENERATORS
from weft.testing.wire import Key, evenly, forward_payload, predict, predicted_forward

FLOAT64, REPLAYED, NATURAL, SERIAL = "float64", "replayed", "natural", "serial"
EVEN, RAGGED = "even", "ragged"

Distance = tuple[float, int]  # sum of squared differences, elements


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """How many steps the trials of more than one step take, and which hard routings there are.
    Without steps in float32 orders are compared in float64.
    """

    float64: int
    float32: int
    routings: tuple[str, ...] = tuple(GENERATORS)

    @property
    def natural(self) -> Trial:
        """The trial whose orders are compared; a second step meets what the first updated."""
        if self.float32:
            return Trial(steps=self.float32, precision="float32", compressed=True)
        return Trial(steps=2, precision="float64", compressed=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What one rank did in each trial."""

    length: Length
    runs: Mapping[str, Run]
    start: Mapping[str, Tensor]  # whole parameters in float64, flat

    def gradients(self, trial: str) -> Mapping[str, Tensor]:
        """The whole gradient of each logical parameter at step 1; one rank owns all of it."""
        return {piece.name: piece.values for piece in self.runs[trial].gradients}


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What one rank found; sums, distances and bytes are by trial."""

    rank: int
    started: tuple[str, ...]  # parameters that do not start with the bits of one rank's
    fed: tuple[str, ...]  # batches that are not its share of one rank's
    sums: Mapping[str, Tensor]
    distances: Mapping[str, Mapping[str, Distance]]
    held: Mapping[str, str]  # digests of parameters after the last float64 step
    flips: tuple[int, int]  # tokens that chose other experts, tokens
    reordered: tuple[str, ...]  # values whose bits depend on the order
    received: Mapping[str, Mapping[Key, tuple[int, int]]]  # bytes predicted, counted
    payload: Mapping[
        str, tuple[float, float]
    ]  # elements of the forward predicted, by the paper's formula
    rounded: Mapping[str, rounded.Off]  # of sums and gradients in eight bits, if there are any


# ---- one rank ------------------------------------------------------------------------------------


def one_rank(course: Course, length: Length) -> Reference:
    """Runs the trials on one rank."""
    crew = stacked_crew(Layout())
    trials = {
        FLOAT64: Trial(steps=length.float64, precision="float64"),
        **({REPLAYED: Trial(steps=length.float32, precision="float32")} if length.float32 else {}),
        **routing_trials(course, length),
    }
    runs: dict[str, Run] = {}
    for name, trial in trials.items():
        (runs[name],) = run(crew, course, trial)
    return Reference(
        length=length,
        runs=MappingProxyType(runs),
        start=initial_parameters(course, trials[FLOAT64]),
    )


def routing_trials(course: Course, length: Length) -> Mapping[str, Trial]:
    """One step of each routing generator that the model has experts enough for."""
    model = course.config.model
    return {
        name: Trial(steps=1, precision="float64", routing=cache(partial(generated, course, name)))
        for name in length.routings
        if name != "one_empty" or model.top_k < model.experts
    }


def generated(
    course: Course, generator: str, step: int, micro_batch: int, layer: int
) -> NDArray[np.int64]:
    """The choices of a generator for one micro-batch and layer."""
    model, train = course.config.model, course.config.train
    tokens = train.micro_batch * course.config.data.sequence
    seed = (step * train.global_batch + micro_batch) * model.layers + layer
    return GENERATORS[generator](tokens, model.experts, model.top_k, seed)


# ---- a layout ------------------------------------------------------------------------------------


def find(crew: Crew, course: Course, reference: Reference) -> tuple[Findings, ...]:
    """Runs every trial on the ranks of a crew and compares each rank with one rank alone."""
    natural = reference.length.natural
    hard = routing_trials(course, reference.length)
    forced = {**hard, **_wire_trials(course, crew.layout)}
    foreseen = {n: t for n, t in forced.items() if not (t.drops and course.config.model.capacity)}
    # where elements are counted each is a number, no byte of a packet, and no forward is braided
    plain = replace(natural, order="serial", compressed=False)
    forecasts = [_forecasts(crew, rank, course, foreseen, plain) for rank in crew.ranks]
    trials = {
        FLOAT64: Trial(steps=reference.length.float64, precision="float64"),
        **_replayed(reference),
        NATURAL: natural,
        SERIAL: replace(natural, order="serial"),
        **forced,
    }
    eight = rounded.encodes(course)
    trials = {**trials, rounded.ROUNDED: rounded.TRIAL} if eight else trials
    expected = rounded.reference(course, crew.layout) if eight else None
    runs = {name: run(crew, course, trial) for name, trial in trials.items()}
    return tuple(
        _compare(
            rank,
            reference,
            {name: each[i] for name, each in runs.items()},
            forecasts[i],
            expected,
        )
        for i, rank in enumerate(crew.ranks)
    )


def _replayed(reference: Reference) -> Mapping[str, Trial]:
    if REPLAYED not in reference.runs:
        return {}
    replay = partial(_chosen, reference.runs[REPLAYED])
    steps = reference.length.float32
    return {REPLAYED: Trial(steps=steps, precision="float32", routing=replay)}


def _chosen(alone: Run, step: int, micro_batch: int, layer: int) -> NDArray[np.int64]:
    return alone.choices[step, micro_batch, layer].numpy()


def _wire_trials(course: Course, layout: Layout) -> Mapping[str, Trial]:
    """One step in the dtype that tells payload and sums apart, its rows even or ragged."""
    model, tokens = (
        course.config.model,
        course.config.train.micro_batch * course.config.data.sequence,
    )
    even = evenly(tokens, model.experts, model.top_k, layout)

    def spread(_step: int, _micro_batch: int, _layer: int) -> NDArray[np.int64]:
        return even

    skewed = cache(partial(generated, course, "skewed"))
    return {
        EVEN: Trial(steps=1, precision="bfloat16", routing=spread, compressed=True, drops=False),
        RAGGED: Trial(steps=1, precision="bfloat16", routing=skewed, compressed=True, drops=False),
    }


# ---- bytes, before anything runs -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Forecasts:
    """Bytes by trial, and the forward's payload at even routing by its programs and the paper."""

    received: Mapping[str, Mapping[Key, int]]
    payload: Mapping[str, tuple[float, float]]


def _forecasts(
    crew: Crew, rank: int, course: Course, trials: Mapping[str, Trial], plain: Trial
) -> _Forecasts:
    received: dict[str, Mapping[Key, int]] = {}
    payload: dict[str, tuple[float, float]] = {}
    for name, trial in trials.items():
        assert trial.routing is not None
        step = crew.compose(plan_of(course, trial, crew.layout, rank))
        choices = partial(trial.routing, 0)
        received[name] = predict(step, choices)
        if name == EVEN and divides_evenly(step.plan):
            step = crew.compose(plan_of(course, plain, crew.layout, rank))
            for labels, elements in forward_payload(step.plan).items():
                ours = predicted_forward(step, choices, labels)
                payload[" + ".join(labels)] = float(ours), float(elements)
    return _Forecasts(received=received, payload=payload)


def divides_evenly(plan: Plan) -> bool:
    """Whether the rows of each stretch of a rank's tokens spread over its expert-parallel group
    with none left over.
    """
    return all(len(own) * plan.shape.top_k % plan.layout.ep == 0 for own in plan.share.tokens)


# ---- comparing -----------------------------------------------------------------------------------


def _compare(
    rank: int,
    reference: Reference,
    runs: Mapping[str, Run],
    forecasts: _Forecasts,
    expected: Trace | None,
) -> Findings:
    main = runs[FLOAT64]
    exact = [name for name in runs if name in reference.runs]
    return Findings(
        rank=rank,
        started=tuple(_other_start(main, reference.start)),
        fed=tuple(_other_batches(main, reference.runs[FLOAT64])),
        sums={name: runs[name].sums for name in exact},
        distances={n: _distances(runs[n], reference.gradients(n)) for n in exact},
        held={name: bits for name, bits in main.end.items() if " of " not in name},
        flips=_flips(runs[NATURAL], reference.runs[REPLAYED if REPLAYED in runs else FLOAT64]),
        reordered=tuple(_reordered(runs[NATURAL], runs[SERIAL])),
        received={
            name: _side_by_side(predicted, runs[name].received)
            for name, predicted in forecasts.received.items()
        },
        payload=forecasts.payload,
        rounded=rounded.distances(runs[rounded.ROUNDED], expected) if expected else {},
    )


def _other_bits(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[str]:
    return (name for name, bits in ours.items() if theirs.get(name) != bits)


def _other_start(ours: Run, whole: Mapping[str, Tensor]) -> Iterator[str]:
    """Parts of parameters that start with other bits than the same part of one rank's."""
    parts = (part for parameter in ours.step.parameters for part in parameter.parts)
    for part in parts:
        if ours.start[part.label] != digest(held(part, whole[part.name])):
            yield part.label


def _reordered(ours: Run, theirs: Run) -> Iterator[str]:
    if not torch.equal(ours.sums, theirs.sums):
        yield "the sums of a step"
    yield from _other_bits(ours.end, theirs.end)


def _other_batches(run: Run, alone: Run) -> Iterator[str]:
    """Batches of a rank that are not its share of one rank's."""
    share = run.step.plan.share
    ranges = {"tokens": share.tokens, "targets": share.tokens, "positions": share.positions}
    for (step, m), batch in run.batches.items():
        whole = alone.batches[step, m]
        for name, own in ranges.items():
            ours, theirs = getattr(batch, name), _pick(getattr(whole, name), own)
            # empty: another stage reads it
            if not torch.equal(ours, theirs if len(ours) else ours):
                yield f"step {step + 1} micro-batch {m} {name}"
        if batch.segments.ends != whole.segments.ends:
            yield f"step {step + 1} micro-batch {m} document ends"


def _distances(ours: Run, whole: Mapping[str, Tensor]) -> Mapping[str, Distance]:
    found: dict[str, Distance] = {}
    for piece in ours.gradients:
        expected = whole[piece.name][piece.start : piece.stop]
        difference, count = found.get(piece.name, (0.0, 0))
        difference += float((piece.values - expected).square().sum())
        found[piece.name] = difference, count + piece.stop - piece.start
    return found


def _flips(ours: Run, alone: Run) -> tuple[int, int]:
    """Tokens whose set of experts is another than on one rank, of how many."""
    own = ours.step.plan.share.tokens
    flipped = tokens = 0
    for place, chosen in ours.choices.items():
        expected = _pick(alone.choices[place], own)
        other = (chosen.sort(-1).values != expected.sort(-1).values).any(-1)
        flipped, tokens = flipped + int(other.sum()), tokens + len(other)
    return flipped, tokens


def _pick(values: Tensor, ranges: Sequence[range]) -> Tensor:
    return torch.cat([values[r.start : r.stop] for r in ranges])


def _side_by_side(
    predicted: Mapping[Key, int], counted: Mapping[Key, int]
) -> Mapping[Key, tuple[int, int]]:
    keys = sorted(predicted.keys() | counted.keys())
    return {key: (predicted.get(key, 0), counted.get(key, 0)) for key in keys}

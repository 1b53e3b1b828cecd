"""Where a step first makes a number that is none: the same step again, each result looked at.

Bodies are called in the order of the schedule's actions, whichever executor runs them, so counting
the calls is knowing the task. The step is run with a bound that no gradient keeps, so that it is
refused like the one it repeats: looking changes nothing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, final

import torch
from torch import Tensor

from weft.compose.plan import NORM2_BOUND
from weft.compose.step import Instance, Step
from weft.runtime.batch import Batch
from weft.runtime.closures import Body
from weft.runtime.stage import Rates, Stage, rebind
from weft.schedule.action import Post, Run

NOWHERE = 2**31  # a call that no step reaches
_MICRO_BATCH = re.compile(r"m(\d+)\.")
_LAYER = re.compile(r"layers\.(\d+)\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A task of a step: its segment, its layer and this rank's micro-batch where it has one."""

    segment: str
    task: str
    layer: int | None
    micro_batch: int | None


@final
class Probe:
    """Bodies that remember the first call whose result is not finite."""

    def __init__(self) -> None:
        self.calls = 0
        self.first = NOWHERE

    def wrap(self, body: Body) -> Body:
        """The body, counted and looked at."""

        def call(*inputs: Any, **attributes: Any) -> Any:
            made = body(*inputs, **attributes)
            if self.first == NOWHERE and not _is_finite(made):
                self.first = self.calls
            self.calls += 1
            return made

        return call


def inspect(
    stage: Stage,
    batches: Sequence[Batch],
    *,
    bodies: Mapping[str, Body],
    device: torch.device,
    divisor: float,
    rates: Rates,
) -> int:
    """Runs a step that changes nothing; the number of the first call with a bad result, on any rank
    of the world the smallest first, or `NOWHERE`.
    """
    probe = Probe()
    bound = rebind(stage, bodies=bodies, device=device, wrap=probe.wrap)
    notes = {NORM2_BOUND: inf}
    bound.run(stage.environment(batches, divisor=divisor, rates=rates, notes=notes))
    return probe.first


def locate(step: Step, number: int) -> Place:
    """The task that makes the call of this number."""
    instance, task = next(
        found for position, found in enumerate(_calls(step)) if position == number
    )
    return Place(
        segment=instance.template,
        task=task,
        layer=_first(_LAYER, [*instance.statics.values(), *instance.writes.values()]),
        micro_batch=_first(_MICRO_BATCH, [*instance.reads.values(), *instance.writes.values()]),
    )


def _calls(step: Step) -> Iterator[tuple[Instance, str]]:
    for instance in step.instances:
        for action in step.templates[instance.template].actions:
            if isinstance(action, Run | Post):
                yield instance, action.task.name


def _first(pattern: re.Pattern[str], texts: Sequence[str]) -> int | None:
    found = (pattern.search(text) for text in texts)
    return next((int(match.group(1)) for match in found if match), None)


def _is_finite(made: object) -> bool:
    """Whether a result has no number that is none; a collective under way is not asked."""
    match made:
        case Tensor() if made.is_floating_point():
            return bool(torch.isfinite(made).all())
        case tuple():
            return all(map(_is_finite, made))
        case _:
            return True

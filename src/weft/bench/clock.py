"""Every task of a rank's step with its time on the device and the host's to issue it.

device    between events on the stream of the body, the queue full before it: the device is held
          at the beginning and again behind each host task, so that no kernel waits for a launch
host      around the body, or around posting it; a host task once the device is idle
chip      products and attention are stretched until a step is as long as one behind others:
          under load the clock is lower, which compute feels and memory does not
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from weft.bench.profile import hold, widths
from weft.bench.rig import Rig
from weft.comm.handle import Handle
from weft.compose.plan import sizes
from weft.graph.program import Program, Task
from weft.planner.calibration import Sample
from weft.planner.whole import ZERO
from weft.planner.work import Attend, Passing, Products, Sending, Waiting, Way, Work, work
from weft.runtime.closures import Body
from weft.runtime.lanes import Lanes
from weft.schedule.action import Post, Run
from weft.trainer.record import Stopwatch

STEPS = 3  # timed passes of a step, behind one that warms up
SETTLING, SETTLED = 4, 4  # steps behind one another: about half a second under load each


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What one rank's step gives: its tasks beside what they ask for, host seconds by body, and
    those that the executor takes from one task to the next.
    """

    samples: Sequence[Sample] = ()
    issue: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    between: float | None = None


@dataclass(kw_only=True, slots=True)
class Call:
    """One call of a body."""

    watch: Stopwatch
    issue: float


@dataclass(kw_only=True, slots=True)
class Clock:
    """Times every call of the bodies that it wraps, in order."""

    device: torch.device
    calls: list[Call] = field(default_factory=list[Call])

    def bodies(self, bodies: Mapping[str, Body]) -> Mapping[str, Body]:
        """The same bodies, timed."""
        return {name: self._timed(name, body) for name, body in bodies.items()}

    def lanes(self, inner: Lanes) -> Lanes:
        """The same lanes; what posting costs the host is the collective's."""
        return _ClockedLanes(self, inner)

    def empty(self) -> list[Call]:
        """The calls so far; the next list starts empty."""
        calls, self.calls = self.calls, []
        return calls

    def _timed(self, name: str, body: Body) -> Body:
        host = name.endswith("_to_host")

        def run(*inputs: Any, **attributes: Any) -> Any:
            if host and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            watch = Stopwatch(self.device)
            begun = time.perf_counter()
            made = body(*inputs, **attributes)
            issue = time.perf_counter() - begun
            watch.stop()
            self.calls.append(Call(watch=watch, issue=issue))
            if host:
                hold(self.device)
            return made

        return run


class _ClockedLanes:
    """Lanes on which posting is timed as a whole."""

    def __init__(self, clock: Clock, inner: Lanes) -> None:
        self.clock = clock
        self.inner = inner

    def posting(self, body: Callable[..., Handle], channel: str) -> Callable[..., Handle]:
        """The body as the inner lanes post it."""
        post = self.inner.posting(body, channel)

        def run(*inputs: Any) -> Handle:
            begun = time.perf_counter()
            handle = post(*inputs)
            self.clock.calls[-1].issue = time.perf_counter() - begun
            return handle

        return run


def take(rig: Rig) -> Taken:
    """Times the tasks of a step of this rank; every rank of its layout calls it.

    Where ranks share a layout nothing is at rest beside a product: their bytes alone are taken.
    """
    n, bytes_of = sizes(rig.plan), widths(rig.plan.precision)
    kernel = rig.config.kernels.attention
    tasks = list(_executed(rig))
    clock, zeros = Clock(device=rig.place.device), list[float]()
    bound = rig.bound(clock.bodies, clock.lanes)
    passes: list[list[Call]] = []
    for _ in range(STEPS + 1):
        rig.transport.barrier()
        hold(rig.place.device)
        watch = Stopwatch(rig.place.device)
        environment = rig.environment()
        watch.stop()
        bound.run(environment)
        zeros.append(watch.milliseconds() * 1e-3)
        passes.append(clock.empty())
    cleared = sum(tensor.nbytes for tensor in rig.stage.state.zeroed)
    asked: Work = Passing(body=ZERO, moved=cleared, way=Way.STREAM)
    found = [Sample(body=ZERO, asked=asked, seconds=statistics.median(zeros[1:]))]
    issue: dict[str, list[float]] = {}
    for (task, program), *calls in zip(tasks, *passes[1:], strict=True):
        issue.setdefault(task.body, []).append(min(call.issue for call in calls))
        asked = work(task, program, n, bytes_of)
        if not isinstance(asked, Sending | Waiting):
            took = statistics.median(call.watch.milliseconds() for call in calls) * 1e-3
            found.append(Sample(body=task.body, asked=asked, seconds=took, kernel=kernel))
    if rig.place.world > 1:
        found = [one for one in found if isinstance(one.asked, Passing)]
        return Taken(samples=found, issue=issue)
    told = sum(sum(times) for times in issue.values())
    return Taken(
        samples=sustained(found, _step_seconds(rig)),
        issue=issue,
        between=max(_issue_seconds(rig) - told, 0.0) / len(tasks),
    )


def sustained(found: Sequence[Sample], step: float) -> list[Sample]:
    """The samples with products and attention stretched until all of them make the whole step."""
    heavy = sum(one.seconds for one in found if isinstance(one.asked, Products | Attend))
    rest = sum(one.seconds for one in found) - heavy
    stretch = (step - rest) / heavy if heavy and step > rest else 1.0
    return [
        replace(one, seconds=one.seconds * stretch)
        if isinstance(one.asked, Products | Attend)
        else one
        for one in found
    ]


def _step_seconds(rig: Rig) -> float:
    """The median step of this rank, one behind the other, once the chip has settled."""
    watches: list[Stopwatch] = []
    for _ in range(SETTLING + SETTLED):
        watch = Stopwatch(rig.place.device)
        rig.stage.bound.run(rig.environment())
        watch.stop()
        watches.append(watch)
    return statistics.median(w.milliseconds() for w in watches[SETTLING:]) * 1e-3


def _issue_seconds(rig: Rig) -> float:
    """Host time of a step of untimed bodies, the device held."""
    took: list[float] = []
    for _ in range(STEPS):
        rig.transport.barrier()
        hold(rig.place.device)
        environment = rig.environment()
        begun = time.perf_counter()
        rig.stage.bound.run(environment)
        took.append(time.perf_counter() - begun)
    return min(took)


def _executed(rig: Rig) -> Iterator[tuple[Task, Program]]:
    """The tasks of a step in the order in which their bodies are called."""
    step = rig.stage.step
    for instance in step.instances:
        ordered = step.templates[instance.template]
        for action in ordered.actions:
            if isinstance(action, Run | Post):
                yield action.task, ordered.program

"""A step as it ran: every body, collective and wait of every rank, on its lane.

Bodies and lanes are wrapped as values, so what runs is the bound schedule itself. On CUDA events
are recorded on the stream a body runs on. On a CPU a collective ends when it is first seen to be
complete, which is looked for before each operator: its bar is too long by at most one of them.
Marks cost time themselves: read a trace for the order and the gaps, `weft bench step` for the time.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from weft.bench.rig import Rig, rigged
from weft.comm.handle import Handle
from weft.config.run import RunConfig
from weft.runtime.backends import pick_device
from weft.runtime.closures import Body
from weft.runtime.executor import BoundStep
from weft.runtime.lanes import Lanes
from weft.telemetry.trace import COMPUTE, SEGMENT, Span
from weft.trainer.record import Stopwatch
from weft.trainer.session import Place

WIRE = "comm"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One stretch of work that was marked where it ran."""

    lane: str
    name: str
    segment: str
    watch: Stopwatch


class Recorder:
    """Wraps what a step is bound from, and keeps a mark for everything that runs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.segment = ""
        self.marks: list[Mark] = []
        self.flying: list[tuple[Handle, Stopwatch]] = []
        self.origin = Stopwatch(device)
        self.began = time.perf_counter()

    def begin(self) -> None:
        """Forgets what was marked; times count from here on."""
        self.marks.clear()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.origin, self.began = Stopwatch(self.device), time.perf_counter()

    def mark(self, lane: str, name: str) -> Stopwatch:
        """Starts a stretch; it ends when its watch is stopped."""
        self._look()
        watch = Stopwatch(self.device)
        self.marks.append(Mark(lane=lane, name=name, segment=self.segment, watch=watch))
        return watch

    def bodies(self, bodies: Mapping[str, Body]) -> Mapping[str, Body]:
        """The same bodies, marked on the lanes they run on."""
        return {name: self._marked(name, body) for name, body in bodies.items()}

    def lanes(self, inner: Lanes) -> Lanes:
        """The same lanes, their waits marked on the compute lane."""
        return _MarkedLanes(self, inner)

    def spans(self, rank: int) -> list[Span]:
        """Everything that was marked, in seconds of a clock that processes of a machine share."""
        self._look()
        free: dict[str, float] = {}
        spans: list[Span] = []
        for mark in self.marks:
            start, stop = self._seconds(mark.watch.begin), self._seconds(mark.watch.end)
            if mark.lane.startswith(WIRE):  # one after the other, whenever they were posted
                start = max(start, free.get(mark.lane, start))
                free[mark.lane] = stop = max(stop, start)
            detail = {"segment": mark.segment}
            named = {"rank": rank, "lane": mark.lane, "name": mark.name}
            spans.append(Span(start=start, stop=stop, detail=detail, **named))
        return spans

    def _marked(self, name: str, body: Body) -> Body:
        def run(*inputs: Any, **attributes: Any) -> Any:
            if "label" in attributes:  # a collective names its payload
                return self._post(name, body, inputs, attributes)
            watch = self.mark(COMPUTE, name)
            made = body(*inputs, **attributes)
            watch.stop()
            return made

        return run

    def _post(
        self, name: str, body: Body, inputs: Sequence[Any], attributes: Mapping[str, Any]
    ) -> Handle:
        lane = f"{WIRE} {attributes['axis']}"
        watch = self.mark(lane, f"{name} {attributes['label']}")
        handle = body(*inputs, **attributes)
        watch.stop()
        if self.device.type != "cuda":
            self.flying.append((handle, watch))
        return handle

    def _look(self) -> None:
        """Ends the bars of collectives on the host that are complete by now."""
        still = []
        for handle, watch in self.flying:
            watch.stop()
            if not handle.ready():
                still.append((handle, watch))
        self.flying = still

    def _seconds(self, moment: Any) -> float:
        if self.device.type != "cuda":
            return moment
        return self.began + self.origin.begin.elapsed_time(moment) / 1e3


class _MarkedLanes:
    """Lanes whose handles mark their wait."""

    def __init__(self, recorder: Recorder, inner: Lanes) -> None:
        self.recorder = recorder
        self.inner = inner

    def posting(self, body: Callable[..., Handle], channel: str) -> Callable[..., Handle]:
        """The body as the inner lanes post it, its handle marked."""
        post = self.inner.posting(body, channel)
        return lambda *inputs: _MarkedHandle(self.recorder, f"wait {channel}", post(*inputs))


class _MarkedHandle(Handle):
    """A handle whose wait is marked."""

    def __init__(self, recorder: Recorder, name: str, inner: Handle) -> None:
        self.recorder = recorder
        self.name = name
        self.inner = inner

    def ready(self) -> bool:
        """Whether the wait would return at once."""
        return self.inner.ready()

    def wait(self) -> Tensor:
        """The result; how long the compute lane stood still is marked."""
        watch = self.recorder.mark(COMPUTE, self.name)
        result = self.inner.wait()
        watch.stop()
        return result


def trace_here(config: RunConfig, *, steps: int) -> list[Span]:
    """Runs some steps of random tokens with all ranks of a layout; the spans of the last step."""
    world = config.parallel.ranks
    with tempfile.TemporaryDirectory(prefix="weft-trace-") as folder:
        arguments = (world, f"file://{folder}/meeting", config, steps, Path(folder))
        if world == 1:
            trace_rank(0, *arguments)
        else:
            spawn(trace_rank, arguments, nprocs=world)
        lines = (Path(folder) / f"rank-{rank}.json" for rank in range(world))
        return [Span(**span) for line in lines for span in json.loads(line.read_text())]


def trace_rank(
    rank: int, world: int, meeting: str, config: RunConfig, steps: int, folder: Path
) -> None:
    """Runs one rank and leaves its spans in a file of the folder."""
    device = pick_device(config.train.device, rank)
    place = Place(rank=rank, world=world, device=device, meeting=meeting)
    with rigged(config, place) as rig:
        spans = trace_step(rig, steps=steps)
    text = json.dumps([asdict(span) for span in spans])
    (folder / f"rank-{rank}.json").write_text(text, encoding="utf-8")


def trace_step(rig: Rig, *, steps: int) -> list[Span]:
    """The spans of the last of some steps on this rank; those before it warm up, marked as well."""
    recorder = Recorder(rig.place.device)
    bound = rig.bound(recorder.bodies, recorder.lanes)
    for _ in range(steps):
        environment = rig.environment()
        rig.transport.barrier()
        recorder.begin()
        for instance, bind in zip(rig.stage.step.instances, bound.instances, strict=True):
            recorder.segment = instance.template
            watch = recorder.mark(SEGMENT, instance.template)
            BoundStep(instances=(bind,)).run(environment)
            watch.stop()
    if rig.place.device.type == "cuda":
        torch.cuda.synchronize(rig.place.device)
    return recorder.spans(rig.place.rank)

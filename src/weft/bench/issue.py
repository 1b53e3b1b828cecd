"""How long the host takes to issue a step, the device's own time left out.

A device takes about a thousand launches ahead; behind that the host waits for it, and a long step
would seem to take the host as long as the device. So the device catches up every few hundred
bodies, and before each that brings numbers to the host; what the host waits there is not counted.
Ranks that run one program pause at the same places; stages of a pipeline do not, and would wait for
each other: theirs is issued in one go.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from weft.bench.rig import Rig
from weft.bench.spread import Spread, spread
from weft.runtime.closures import Body

BODIES = 200  # between two pauses: some launches each, a thousand at most


class Pauses:
    """Bodies that let the device catch up now and then, and the seconds that took."""

    def __init__(self, catch_up: Callable[[], object], bodies: int = BODIES) -> None:
        self._catch_up = catch_up
        self._every = bodies
        self._called = 0
        self.seconds = 0.0

    def bodies(self, bodies: Mapping[str, Body]) -> Mapping[str, Body]:
        """The same bodies, a pause behind some of them, and before those that wait themselves."""
        counted = {name: self._counted(body) for name, body in bodies.items()}
        waiting = (name for name in bodies if name.endswith("_to_host"))
        return counted | {name: self._behind_device(counted[name]) for name in waiting}

    def _counted(self, body: Body) -> Body:
        def run(*inputs: Any, **attributes: Any) -> Any:
            made = body(*inputs, **attributes)
            self._called += 1
            if self._called % self._every == 0:
                self._pause()
            return made

        return run

    def _behind_device(self, body: Body) -> Body:
        def run(*inputs: Any, **attributes: Any) -> Any:
            self._pause()
            return body(*inputs, **attributes)

        return run

    def _pause(self) -> None:
        begun = time.perf_counter()
        self._catch_up()
        self.seconds += time.perf_counter() - begun


def issue_times(rig: Rig, steps: int) -> Spread:
    """Host milliseconds to issue a step, each to an idle device."""
    device = rig.place.device
    pauses, bound = Pauses(lambda: torch.cuda.synchronize(device)), rig.stage.bound
    if rig.plan.layout.pp == 1:
        bound = rig.bound(pauses.bodies, lambda lanes: lanes)
    times: list[float] = []
    for _ in range(steps):
        rig.transport.barrier()
        torch.cuda.synchronize(device)
        waited, begun = pauses.seconds, time.perf_counter()
        bound.run(rig.environment())
        times.append(time.perf_counter() - begun - (pauses.seconds - waited))
    torch.cuda.synchronize(device)
    return spread(times).scaled(1e3)

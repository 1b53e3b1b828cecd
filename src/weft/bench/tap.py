"""Bodies that are timed where they run: a wrapper around each, and around each wait.

On a CPU the clock is the host's. On CUDA an event is recorded before and after on the stream on
which the body was called, so a collective is timed on its own lane and a wait by how long the
compute stream stood still. The marks cost time themselves: a step that is tapped is never the step
whose time is reported.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft.comm.handle import Handle
from weft.runtime.closures import Body
from weft.runtime.lanes import Lanes
from weft.trainer.record import Stopwatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One timed call: the body's name, and its time once the device has done it."""

    name: str
    watch: Stopwatch


class Tap:
    """Wraps what is to be timed, and holds the calls since it was last emptied."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._calls: list[Call] = []

    def bodies(self, bodies: Mapping[str, Body]) -> Mapping[str, Body]:
        """The same bodies, timed under their names."""
        return {name: self._timed(name, body) for name, body in bodies.items()}

    def lanes(self, inner: Lanes) -> Lanes:
        """The same lanes, each wait timed as `wait.<channel>`."""
        return _TappedLanes(self, inner)

    def time(self, name: str, call: Callable[[], Any]) -> Any:
        """What a call returns, timed."""
        watch = Stopwatch(self.device)
        result = call()
        watch.stop()
        self._calls.append(Call(name=name, watch=watch))
        return result

    def empty(self) -> list[Call]:
        """The calls so far; the next list starts empty."""
        calls, self._calls = self._calls, []
        return calls

    def milliseconds(self) -> dict[str, float]:
        """The time of the calls so far by name; the next list starts empty."""
        sums: dict[str, float] = {}
        for call in self.empty():
            sums[call.name] = sums.get(call.name, 0.0) + call.watch.milliseconds()
        return sums

    def _timed(self, name: str, body: Body) -> Body:
        def run(*inputs: Any, **attributes: Any) -> Any:
            watch = Stopwatch(self.device)
            made = body(*inputs, **attributes)
            watch.stop()
            self._calls.append(Call(name=name, watch=watch))
            return made

        return run


class Scales:
    """Weighs what bodies move; no part of the tap, since weighing outlasts a small body."""

    def __init__(self) -> None:
        self.moved: dict[str, int] = {}

    def bodies(self, bodies: Mapping[str, Body]) -> Mapping[str, Body]:
        """The same bodies, their bytes added up under their names."""
        return {name: self._weighed(name, body) for name, body in bodies.items()}

    def _weighed(self, name: str, body: Body) -> Body:
        def run(*inputs: Any, **attributes: Any) -> Any:
            made = body(*inputs, **attributes)
            self.moved[name] = self.moved.get(name, 0) + moved_bytes(inputs, made)
            return made

        return run


def moved_bytes(inputs: Iterable[Any], made: Any) -> int:
    """Bytes of the tensors a body reads and writes, each once; a view as a result moves nothing.

    An operand that is returned itself was updated in place: it counts twice.
    """
    read = [x for x in inputs if isinstance(x, Tensor)]
    results = made if isinstance(made, tuple) else (made,)
    written = [x for x in results if isinstance(x, Tensor)]
    places = {x.untyped_storage().data_ptr() for x in read}
    updated = {id(x) for x in read}
    fresh = (x for x in written if id(x) in updated or x.untyped_storage().data_ptr() not in places)
    return sum(x.nbytes for x in read) + sum(x.nbytes for x in fresh)


class _TappedLanes:
    """Lanes whose handles time their wait."""

    def __init__(self, tap: Tap, inner: Lanes) -> None:
        self.tap = tap
        self.inner = inner

    def posting(self, body: Callable[..., Handle], channel: str) -> Callable[..., Handle]:
        """The body as the inner lanes post it, its handle tapped."""
        post = self.inner.posting(body, channel)
        return lambda *inputs: _TappedHandle(self.tap, f"wait.{channel}", post(*inputs))


class _TappedHandle(Handle):
    """A handle whose wait is timed."""

    def __init__(self, tap: Tap, name: str, inner: Handle) -> None:
        self.tap = tap
        self.name = name
        self.inner = inner

    def ready(self) -> bool:
        """Whether the wait would return at once."""
        return self.inner.ready()

    def wait(self) -> Tensor:
        """The result; the time until it is there is on the tap."""
        return self.tap.time(self.name, self.inner.wait)

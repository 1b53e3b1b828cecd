"""Whether the host waits for the device inside a step: only named host tasks may.

torch raises an error at each call that waits, the copies to the host among them; it is told to look
away while a task of the host lane runs, and those are counted.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from weft.bench.rig import Rig
from weft.graph.fused import lookup
from weft.graph.opset import Lane
from weft.runtime.closures import Body


@dataclass(frozen=True, kw_only=True, slots=True)
class Synchronisations:
    """How many named host tasks a step has, and the first body that waited without being one."""

    named: int
    unnamed: str | None

    def text(self) -> str:
        """The finding as one line."""
        if self.unnamed is None:
            return f"{self.named} in named host tasks, none elsewhere"
        return f"NOT clean: {self.unnamed}"


class Watch:
    """Follows the bodies of one step."""

    def __init__(self) -> None:
        self.named = 0
        self.running = "the start of the step"

    def bodies(self, bodies: Mapping[str, Body]) -> Mapping[str, Body]:
        """The same bodies, each named while it runs; those of the host lane may wait."""
        return {name: self._followed(name, body) for name, body in bodies.items()}

    def _followed(self, name: str, body: Body) -> Body:
        host = lookup(name.partition(".")[0]).lane is Lane.HOST

        def run(*inputs: Any, **attributes: Any) -> Any:
            self.running = name
            if not host:
                return body(*inputs, **attributes)
            self.named += 1
            with mode("default"):
                return body(*inputs, **attributes)

        return run


def synchronisations(rig: Rig) -> Synchronisations:
    """Runs one step under torch's watch, after a step that has warmed it up."""
    watch = Watch()
    bound = rig.bound(watch.bodies, lambda lanes: lanes)
    bound.run(rig.environment())
    torch.cuda.synchronize(rig.place.device)
    watch.named = 0
    with mode("error"):
        try:
            bound.run(rig.environment())
        except RuntimeError as error:
            if "synchroniz" not in str(error):  # torch's "called a synchronizing CUDA operation"
                raise
            return Synchronisations(named=watch.named, unnamed=f"{watch.running}: {error}")
    return Synchronisations(named=watch.named, unnamed=None)


@contextmanager
def mode(wanted: str) -> Iterator[None]:
    """What torch does where the host waits, "default" or "error"; then as it was before."""
    before = torch.cuda.get_sync_debug_mode()
    _set_mode(wanted)
    try:
        yield
    finally:
        _set_mode(before)


def _set_mode(wanted: int | str) -> None:
    with warnings.catch_warnings():  # that it does not see every wait is known
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode(wanted)

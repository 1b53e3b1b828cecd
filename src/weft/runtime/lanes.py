"""Lanes: how a posted collective leaves the compute lane and how the compute lane waits for it.

On the host the transport is asynchronous itself: posting returns a handle. On CUDA each channel (an
axis and a lane) has a stream; posting makes it wait for what compute has issued so far, and waiting
makes the compute stream wait for an event.

Memory needs no `record_stream`: what a collective reads is freed after its wait
(`schedule.action.with_frees`; across segments its handle holds it), and what it writes comes from
its own stream's pool, whose every later use waits for the compute stream first.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from weft.comm.handle import Handle

Body = Callable[..., Handle]


class Lanes(Protocol):
    """Where collectives run."""

    def posting(self, body: Body, channel: str) -> Body:
        """The body as it is called when a collective is posted."""
        ...


class HostLanes:
    """The transport's own asynchrony."""

    def posting(self, body: Body, channel: str) -> Body:  # noqa: ARG002 - all are alike here
        """The body itself."""
        return body


class CudaLanes:
    """A high-priority stream for each channel beside the stream that is current at bind time; none
    for an axis on which a rank is `alone`, where nothing travels.
    """

    def __init__(
        self, device: torch.device, alone: Callable[[str], bool] = lambda _axis: False
    ) -> None:
        self.device = device
        self.alone = alone
        self.compute = torch.cuda.current_stream(device)
        self.streams: dict[str, torch.cuda.Stream] = {}

    def posting(self, body: Body, channel: str) -> Body:
        """The body on the stream of its channel, between two events.

        The first is recorded anew each time, since the lane waits for it at once. The second
        belongs to a flight until that is waited for: a template may post again before.
        """
        if self.alone(channel.partition("/")[0]):
            return body
        compute, lane, set_stream = self.compute, self._stream(channel), torch.cuda.set_stream
        issued = torch.cuda.Event()
        spare: list[torch.cuda.Event] = []

        def post(*inputs: Any) -> Handle:
            issued.record(compute)
            lane.wait_event(issued)
            set_stream(lane)
            try:
                inner = body(*inputs)
            finally:
                set_stream(compute)
            arrived = spare.pop() if spare else torch.cuda.Event()
            arrived.record(lane)
            return Flight(inner, inputs, arrived, compute, spare)

        return post

    def _stream(self, channel: str) -> torch.cuda.Stream:
        if channel not in self.streams:
            self.streams[channel] = torch.cuda.Stream(self.device, priority=-1)
        return self.streams[channel]


class Flight(Handle):
    """A collective on its way on another stream; it holds what the wire reads until it is waited
    for, and its event no longer than that.
    """

    __slots__ = ("arrived", "compute", "inner", "inputs", "spare")

    def __init__(
        self,
        inner: Handle,
        inputs: tuple[Any, ...],
        arrived: torch.cuda.Event,
        compute: torch.cuda.Stream,
        spare: list[torch.cuda.Event],
    ) -> None:
        self.inner = inner
        self.inputs = inputs
        self.arrived: torch.cuda.Event | None = arrived
        self.compute = compute
        self.spare = spare

    def ready(self) -> bool:
        """Whether the compute stream may be made to wait: always, the order is the device's."""
        return True

    def wait(self) -> torch.Tensor:
        """Makes the compute stream wait; the host goes on."""
        if self.arrived is not None:
            self.compute.wait_event(self.arrived)
            self.spare.append(self.arrived)
            self.arrived, self.inputs = None, ()
        return self.inner.wait()

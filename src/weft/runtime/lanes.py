"""Lanes: how a posted collective leaves the compute lane and how the compute lane waits for it.

On the host the transport is asynchronous itself: posting returns a handle. On CUDA each axis has a
stream; posting makes it wait for what compute has issued so far, and waiting makes the compute
stream wait for an event.

Memory needs no `record_stream`: what a collective reads is freed after its wait
(`schedule.action.with_frees`), and what it writes comes from its own stream's pool, whose every
later use waits for the compute stream first.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from weft.comm.handle import Handle

Body = Callable[..., Handle]


class Lanes(Protocol):
    """Where collectives run."""

    def posting(self, body: Body, axis: str) -> Body:
        """The body as it is called when a collective is posted."""
        ...


class HostLanes:
    """The transport's own asynchrony."""

    def posting(self, body: Body, axis: str) -> Body:  # noqa: ARG002 - every axis is alike here
        """The body itself."""
        return body


class CudaLanes:
    """A high-priority stream for each axis beside the stream that is current at bind time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.compute = torch.cuda.current_stream(device)
        self.streams: dict[str, torch.cuda.Stream] = {}

    def posting(self, body: Body, axis: str) -> Body:
        """The body on the stream of its axis, between two events.

        The events belong to the posting and are recorded anew each time: a wait has seen the event
        of its own post, because a segment waits for all it has posted.
        """
        compute, lane, set_stream = self.compute, self._stream(axis), torch.cuda.set_stream
        issued, arrived = torch.cuda.Event(), torch.cuda.Event()

        def post(*inputs: Any) -> Handle:
            issued.record(compute)
            lane.wait_event(issued)
            set_stream(lane)
            try:
                inner = body(*inputs)
            finally:
                set_stream(compute)
            arrived.record(lane)
            return Flight(inner, arrived, compute)

        return post

    def _stream(self, axis: str) -> torch.cuda.Stream:
        if axis not in self.streams:
            self.streams[axis] = torch.cuda.Stream(self.device, priority=-1)
        return self.streams[axis]


class Flight(Handle):
    """A collective on its way on another stream."""

    __slots__ = ("arrived", "compute", "inner")

    def __init__(
        self, inner: Handle, arrived: torch.cuda.Event, compute: torch.cuda.Stream
    ) -> None:
        self.inner = inner
        self.arrived = arrived
        self.compute = compute

    def ready(self) -> bool:
        """Whether the compute stream may be made to wait: always, the order is the device's."""
        return True

    def wait(self) -> torch.Tensor:
        """Makes the compute stream wait; the host goes on."""
        self.compute.wait_event(self.arrived)
        return self.inner.wait()

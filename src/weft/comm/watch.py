"""Calls over peer memory that do not come to an end: looked for from the host, named and told.

A device that awaits a flag awaits it for ever, or, where a kernel does, a counted number of looks.
This thread looks now and then at the oldest call of
each channel that is not done; one that has been the oldest for too long is told, with the flag that
it awaits and where that flag stands. What is done about it is for who listens: a step that has
missed data must not go on.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, final

from weft.comm.exchange import Flag, Mark, reached
from weft.errors import CommunicationError

_LOOKS = 10  # in the time that a call may take
_LONGEST_SECONDS = 1.0  # between two looks


class Done(Protocol):
    """An event behind a call."""

    def query(self) -> bool:
        """Whether it has happened."""
        ...


class _Always:
    """The event of a call that has ordered nothing."""

    def query(self) -> bool:
        return True


@dataclass(kw_only=True, slots=True)
class Flight:
    """One call of a channel: its name, its place in their order, what it awaits, its end."""

    name: object
    sequence: int
    awaited: list[Mark] = field(default_factory=list)
    done: Done = field(default_factory=_Always)


class Watched(Protocol):
    """A channel that can be looked at from another thread."""

    def oldest(self) -> Flight | None:
        """The first call that was not done when last looked at."""
        ...

    def gave_up(self) -> tuple[Flight, Mark] | None:
        """A call that has ended without a flag of another member, and that flag."""
        ...

    def standing(self) -> Mapping[tuple[int, Flag], int]:
        """Where the flags of the others stand."""
        ...


@final
class Watch:
    """A thread that looks after the channels of a rank until it is closed."""

    def __init__(
        self,
        channels: tuple[Watched, ...],
        *,
        rank: int,
        seconds: float,
        tell: Callable[[CommunicationError], None],
    ) -> None:
        self._channels = channels
        self._rank = rank
        self._seconds = seconds
        self._tell = tell
        self._since: dict[int, tuple[Flight, float]] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peer memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(min(self._seconds / _LOOKS, _LONGEST_SECONDS)):
            late = self._late(time.monotonic())
            if late is not None:
                self._tell(late)
                return

    def _late(self, now: float) -> CommunicationError | None:
        for number, channel in enumerate(self._channels):
            ended = channel.gave_up()
            if ended is not None:
                return given_up(*ended, rank=self._rank)
            flight = channel.oldest()
            if flight is None or flight.done.query():
                self._since.pop(number, None)
                continue
            first, since = self._since.get(number, (None, now))
            if first is not flight:
                self._since[number] = (flight, now)
            elif now - since > self._seconds:
                return overdue(flight, channel.standing(), rank=self._rank, seconds=now - since)
        return None


def given_up(flight: Flight, mark: Mark, *, rank: int) -> CommunicationError:
    """The error that names a call which has ended without its data."""
    return CommunicationError(
        f"rank {rank}: {flight.name}, call {flight.sequence} of its channel, gave up: "
        f"{mark.flag.name} of position {mark.peer} did not reach epoch {mark.epoch}; "
        "look for the first error of that rank, or raise the timeout"
    )


def overdue(
    flight: Flight, standing: Mapping[tuple[int, Flag], int], *, rank: int, seconds: float
) -> CommunicationError:
    """The error that names a call and the first flag that it still awaits."""
    missing = (
        f"it awaits {one.flag.name} of position {one.peer} to reach epoch {one.epoch}, found "
        f"{standing[one.peer, one.flag]}"
        for one in flight.awaited
        if not reached(standing[one.peer, one.flag], one.epoch)
    )
    why = next(missing, "every flag that it awaits is there: the device itself is late")
    return CommunicationError(
        f"rank {rank}: {flight.name}, call {flight.sequence} of its channel, is not done after "
        f"{seconds:.1f} s: {why}; look for the first error of that rank, or raise the timeout"
    )

"""Any transport, watched: how many bytes reached this rank as what, and which calls came last.

The counts are what `planner` must predict exactly; the log is what a report of a hang shows.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from torch import Tensor

from weft.comm.call import Call, received_bytes
from weft.comm.handle import Handle
from weft.comm.transport import Transport

CountKey = tuple[str, str, str]  # axis, collective, label


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    """One call and its place in the order of its group."""

    call: Call
    sequence: int

    def __str__(self) -> str:
        return f"{self.call.axis}/{self.call.lane} {self.sequence}: {self.call}"


@final
class CountingTransport(Transport):
    """Forwards to another transport and writes down what passes; groups of one pass nothing.

    Counts are for all lanes together; sequence numbers are of one (axis, lane), from zero, and
    survive `reset`.
    """

    def __init__(self, inner: Transport, *, log_length: int = 64) -> None:  # some layers
        self._inner = inner
        self._bytes: Counter[CountKey] = Counter()
        self._posted: Counter[tuple[str, str]] = Counter()
        self._log: deque[LogEntry] = deque(maxlen=log_length)

    def counts(self) -> Mapping[CountKey, int]:
        """Bytes received since the last reset by (axis, collective, label); a copy that stays as
        it is.
        """
        return MappingProxyType(dict(self._bytes))

    def log(self) -> tuple[LogEntry, ...]:
        """The last calls posted, oldest first."""
        return tuple(self._log)

    def reset(self) -> None:
        """Forgets the counts and the log."""
        self._bytes.clear()
        self._log.clear()

    def group_size(self, axis: str) -> int:
        return self._inner.group_size(axis)

    def group_rank(self, axis: str) -> int:
        return self._inner.group_rank(axis)

    def barrier(self) -> None:
        self._inner.barrier()

    def close(self) -> None:
        self._inner.close()

    def exposed_seconds(self) -> float:
        return self._inner.exposed_seconds()

    def reset_exposed(self) -> None:
        self._inner.reset_exposed()

    def describe(self) -> str:
        return self._inner.describe()

    def sums_on_arrival(self) -> bool:
        return self._inner.sums_on_arrival()

    def post(self, call: Call, x: Tensor, out: Tensor) -> Handle:
        group = (call.axis, call.lane)
        self._log.append(LogEntry(call=call, sequence=self._posted[group]))
        self._posted[group] += 1
        key = (call.axis, call.collective.value, call.label)
        self._bytes[key] += received_bytes(
            call, size=self.group_size(call.axis), position=self.group_rank(call.axis)
        )
        return self._inner.post(call, x, out)

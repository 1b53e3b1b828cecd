"""Any transport, observed: each collective is announced before it is posted and while it is waited
for, so that whoever looks from outside knows where a rank stands.
"""

from abc import ABC, abstractmethod
from collections import Counter
from typing import final

from torch import Tensor

from weft.comm.call import Call
from weft.comm.handle import Handle
from weft.comm.transport import Transport


class Observer(ABC):
    """Who is told; called in the inner loop, so it does next to nothing."""

    @abstractmethod
    def posting(self, call: Call, sequence: int) -> None:
        """A collective is about to be posted, the `sequence`-th of its group."""

    @abstractmethod
    def waiting(self, call: Call, sequence: int) -> None:
        """The rank is about to wait for it."""

    @abstractmethod
    def arrived(self) -> None:
        """The rank goes on."""


@final
class WatchedTransport(Transport):
    """Forwards to another transport and tells an observer; groups of one tell nothing."""

    def __init__(self, inner: Transport, observer: Observer) -> None:
        self._inner = inner
        self._observer = observer
        self._posted: Counter[tuple[str, str]] = Counter()

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
        sequence = self._posted[group]
        self._posted[group] += 1
        self._observer.posting(call, sequence)
        return _Watched(self._inner.post(call, x, out), call, sequence, self._observer)


@final
class _Watched(Handle):
    """A handle whose wait is announced; a second wait is for nothing and announces nothing."""

    def __init__(self, inner: Handle, call: Call, sequence: int, observer: Observer) -> None:
        self._inner = inner
        self._call = call
        self._sequence = sequence
        self._observer: Observer | None = observer

    def ready(self) -> bool:
        return self._inner.ready()

    def wait(self) -> Tensor:
        if self._observer is None:
            return self._inner.wait()
        self._observer.waiting(self._call, self._sequence)
        result = self._inner.wait()
        self._observer.arrived()
        self._observer = None
        return result

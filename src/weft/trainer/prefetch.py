"""What the next step reads, read while this one computes.

Reading, checking and cutting text needs no device, and lets go of the interpreter where it takes
long. Steps ask in ascending order but for a run that goes back, which waits once.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, final

T = TypeVar("T")


@final
class Prefetch(Generic[T]):
    """One reader, one step ahead."""

    def __init__(self, read: Callable[[int], T]) -> None:
        self._read = read
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._index = -1
        self._ahead: Future[T] | None = None

    def take(self, index: int) -> T:
        """What is read for a step; the reading of the next one begins.

        Raises:
            whatever the reading of this step raised.
        """
        ahead = self._ahead if self._index == index else None
        found = self._read(index) if ahead is None else ahead.result()
        self._index, self._ahead = index + 1, self._reader.submit(self._read, index + 1)
        return found

    def close(self) -> None:
        """Ends the reader; what it has read ahead is dropped."""
        self._reader.shutdown(cancel_futures=True)

"""A collective under way: whether it has arrived, and how to have its result."""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor


class Handle(ABC):
    """A posted collective. It keeps alive whatever the wire still reads or writes."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether `wait` would return, or raise, at once."""

    @abstractmethod
    def wait(self) -> Tensor:
        """The result, once it is there; the same tensor each time it is asked for."""


@final
class Finished(Handle):
    """A handle that never has to wait: a group of one, or work already ordered on the current
    stream.
    """

    def __init__(self, result: Tensor) -> None:
        self._result = result

    def ready(self) -> bool:
        return True

    def wait(self) -> Tensor:
        return self._result

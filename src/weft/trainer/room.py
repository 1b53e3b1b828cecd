"""When a run trusts its bound on rows: always, but for some steps after one that overflowed.

A step that overflows is run again, which costs it twice; routing that is uneven now will be for
some while. So the steps behind it make room for every row too: one at first, twice as many after
each further overflow, and one again once the bound has held for long.
"""

from typing import final

MOST_STEPS = 1024  # between two tries
LONG = 8  # times the last wait


@final
class Room:
    """The steps of a run that make room for every row, known alike to all ranks."""

    def __init__(self) -> None:
        self._wait = 0
        self._until = 0

    def is_exact(self, step: int) -> bool:
        """Whether a step makes room for every row."""
        return step <= self._until

    def overflowed(self, step: int) -> int:
        """Takes note that a step has to be run again; the last of those that make room."""
        held = step > self._until + LONG * self._wait
        self._wait = 1 if held or not self._wait else min(2 * self._wait, MOST_STEPS)
        self._until = step + self._wait
        return self._until

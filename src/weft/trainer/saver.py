"""When a checkpoint is written and what becomes of it: beside the training, or in its way.

A write in the background is over long before the next one is due; if it is not, the next one waits.
How it ended is told at the end of the step in which it is seen.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

from weft.checkpoint.background import Background, Ended
from weft.errors import WeftError
from weft.trainer.recover import save_session, state_pieces
from weft.trainer.session import Session


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a save ended, for how long it held up the training, and what it had to say."""

    ended: Ended
    stall_seconds: float
    said: tuple[str, ...]


@final
class Saver:
    """Saves one rank's part of a run, step by step."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._background = Background()
        self._stall = 0.0
        self._said: list[str] = []

    def begin(self, step: int, *, next_batch: int | None = None) -> Outcome | None:
        """Begins to save a step; returns what became of a save that was still under way."""
        begun = time.perf_counter()
        before = self.wait()
        finish = self._session.snapshot.begin(list(state_pieces(self._session)))
        write = partial(
            save_session,
            self._session,
            step=step,
            report=self._said.append,
            next_batch=next_batch,
            barrier=self._session.meet,
        )
        self._background.start(step, lambda: write(pieces=finish()))
        self._stall = time.perf_counter() - begun
        return before

    def save(self, step: int, *, next_batch: int | None = None) -> Outcome:
        """Saves a step and returns when that is done."""
        begun = time.perf_counter()
        said: list[str] = []
        folder, failure = None, None
        try:
            folder = save_session(
                self._session, step=step, report=said.append, next_batch=next_batch
            )
        except WeftError as error:
            failure = error
        seconds = time.perf_counter() - begun
        ended = Ended(step=step, seconds=seconds, folder=folder, error=failure)
        return Outcome(ended=ended, stall_seconds=seconds, said=tuple(said))

    def look(self) -> Outcome | None:
        """What became of the save under way, once it is over."""
        return self._outcome(self._background.ended)

    def wait(self) -> Outcome | None:
        """What becomes of the save under way."""
        return self._outcome(self._background.wait)

    def _outcome(self, find: Callable[[], Ended | None]) -> Outcome | None:
        ended = find()
        if ended is None:
            return None
        said = tuple(self._said)
        self._said.clear()
        stall_seconds = self._stall + self._session.snapshot.held_seconds
        return Outcome(ended=ended, stall_seconds=stall_seconds, said=said)

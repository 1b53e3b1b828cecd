"""Who holds the others up: from what each rank shows, and nothing else.

a rank whose own thread stands still            it is stopped, or stuck outside of Python
else a rank that does not wait, others do       they wait for it
else, all wait: the ranks furthest behind       they never met: their collectives differ
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weft.trainer.pulse import ALIVE_SECONDS, Sign

# The phases that may take long without a sign; kernels are compiled, files are read and written.
FLOOR_SECONDS: Mapping[str, float] = {
    "start": 600.0,
    "first step": 600.0,
    "save": 600.0,
    "inspect": 600.0,
    "end": 600.0,
}
_MISSED_TURNS = 5  # of a rank's thread; fewer happen on a busy machine
_SHOWN_FRAMES = 12  # of the culprit's stack; all of it is in the file


@dataclass(frozen=True, kw_only=True, slots=True)
class Hang:
    """Ranks that get no further, and what all of them show."""

    culprits: tuple[int, ...]
    reason: str
    seconds: float
    limit: float
    signs: Mapping[int, Sign | None]
    now_ns: int


def find(
    signs: Mapping[int, Sign | None], *, begun_ns: int, timeout: float, now_ns: int | None = None
) -> Hang | None:
    """Ranks that have shown nothing new for longer than their phase may take."""
    now = time.monotonic_ns() if now_ns is None else now_ns
    idle = {
        rank: (now - (sign.moved_ns if sign else begun_ns)) / 1e9 for rank, sign in signs.items()
    }
    late = [r for r, sign in signs.items() if idle[r] > limit_seconds(sign, timeout)]
    if not late:
        return None
    culprits, reason = blame(signs, now)
    longest = max(late, key=lambda rank: idle[rank])
    return Hang(
        culprits=tuple(culprits),
        reason=reason,
        seconds=idle[longest],
        limit=limit_seconds(signs[longest], timeout),
        signs=signs,
        now_ns=now,
    )


def limit_seconds(sign: Sign | None, timeout: float) -> float:
    """How long a rank may show nothing new where it is."""
    return max(timeout, FLOOR_SECONDS.get(sign.phase if sign else "start", 0.0))


def blame(signs: Mapping[int, Sign | None], now_ns: int) -> tuple[Sequence[int], str]:
    """The ranks that hold the others up, and why they are thought to."""
    absent = [rank for rank, sign in signs.items() if sign is None]
    if absent:
        return absent, "it has not shown itself yet"
    shown = {rank: sign for rank, sign in signs.items() if sign is not None}
    turns = {
        r: (now_ns - max(s.alive_ns, s.moved_ns)) / 1e9 / ALIVE_SECONDS for r, s in shown.items()
    }
    still = [rank for rank, missed in turns.items() if missed > _MISSED_TURNS]
    if still:
        return still, "it does not run at all: stopped, or stuck outside of Python"
    busy = {rank: sign for rank, sign in shown.items() if not sign.waits}
    if busy:
        first = min(sign.moved_ns for sign in busy.values())
        stuck = [r for r, sign in busy.items() if sign.moved_ns == first or _is_late(sign, shown)]
        return stuck, "it runs and waits for no other rank"
    behind = min(sign.posted for sign in shown.values())
    apart = [rank for rank, sign in shown.items() if sign.posted == behind]
    return apart, "all ranks wait, these the furthest behind: compare their collectives"


def _is_late(sign: Sign, shown: Mapping[int, Sign]) -> bool:
    """Whether a rank that does not wait has been where it is since before the others waited."""
    waiting = [other.moved_ns for other in shown.values() if other.waits]
    return bool(waiting) and sign.moved_ns < min(waiting)


def describe(hang: Hang, stacks: Mapping[int, str]) -> str:
    """The culprits, where every rank stands, and the stack of the first culprit."""
    names = ", ".join(str(rank) for rank in hang.culprits)
    word = "rank" if len(hang.culprits) == 1 else "ranks"
    found = f"{word} {names} of {len(hang.signs)} got no further for {hang.seconds:.1f} s"
    advice = "if nothing is wrong, raise train.timeout_seconds"
    lines = [
        f"{found}: {hang.reason}; expected a sign every {hang.limit:g} s; {advice}",
        *(f"  rank {rank}: {_where(sign, hang.now_ns)}" for rank, sign in hang.signs.items()),
        f"  the stack of rank {hang.culprits[0]}, innermost first:",
        *(f"  {line}" for line in main_stack(stacks[hang.culprits[0]])[:_SHOWN_FRAMES]),
    ]
    return "\n".join(lines)


def report(hang: Hang, stacks: Mapping[int, str]) -> str:
    """Where every rank stands, with its whole stack."""
    return "\n\n".join(
        f"rank {rank}: {_where(sign, hang.now_ns)}\n{stacks[rank] or '(it wrote no stack)'}"
        for rank, sign in hang.signs.items()
    )


def main_stack(text: str) -> list[str]:
    """The lines of the main thread in a dump of all threads, which names it last."""
    found: list[str] = []
    for line in text.splitlines():
        if "most recent call first" in line:
            found = []
        elif line.strip():
            found.append(line)
    return found or ["(it wrote no stack)"]


def _where(sign: Sign | None, now_ns: int) -> str:
    if sign is None:
        return "has not shown itself"
    what = "waits in" if sign.waits else "after"
    call = f", {what} {sign.call}" if sign.call else ""
    return f"{sign.phase} {sign.step}{call}, for {(now_ns - sign.moved_ns) / 1e9:.1f} s"

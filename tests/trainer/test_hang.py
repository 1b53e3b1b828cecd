"""The rank that holds the others up is named, from what each shows."""

import pytest

from weft.trainer import hang
from weft.trainer.pulse import Sign

NOW = 100_000_000_000
STACK = """Thread 0x1 (most recent call first):
  File "a.py", line 1 in beat

Current thread 0x2 (most recent call first):
  File "b.py", line 2 in dispatch
  File "c.py", line 3 in run
"""


def sign(
    ago: float, *, alive: float = 0.1, waits: bool = False, posted: int = 5, call: str = ""
) -> Sign:
    return Sign(
        alive_ns=NOW - int(alive * 1e9),
        moved_ns=NOW - int(ago * 1e9),
        step=3,
        posted=posted,
        waits=waits,
        phase="step",
        call=call,
    )


STOPPED = {0: sign(9.9, waits=True), 1: sign(10, alive=10), 2: sign(9.9, waits=True)}
SLEEPS = {0: sign(9.9, waits=True), 1: sign(9.9, waits=True), 2: sign(10)}
APART = {0: sign(10, waits=True, posted=8), 1: sign(10, waits=True, posted=5)}
FIRST = {0: sign(10, waits=True), 1: None}
ALONE = {0: sign(10)}


@pytest.mark.parametrize(
    ("signs", "culprits"),
    [(STOPPED, (1,)), (SLEEPS, (2,)), (APART, (1,)), (ALONE, (0,))],
    ids=["stopped", "sleeps", "collectives differ", "alone"],
)
def test_the_culprit_is_found(signs: dict, culprits: tuple) -> None:
    found = hang.find(signs, begun_ns=0, timeout=5.0, now_ns=NOW)
    assert found is not None
    assert found.culprits == culprits
    assert f"of {len(signs)} got no further for" in hang.describe(
        found, dict.fromkeys(signs, STACK)
    )


def test_nobody_is_blamed_in_time() -> None:
    assert hang.find(STOPPED, begun_ns=0, timeout=10.5, now_ns=NOW) is None


def test_a_start_may_take_longer_than_a_step() -> None:
    assert hang.find(FIRST, begun_ns=0, timeout=20.0, now_ns=NOW) is None
    late = hang.find(FIRST, begun_ns=-int(700e9), timeout=5.0, now_ns=NOW)
    assert late is not None
    assert late.culprits == (1,)


def test_the_stack_shown_is_of_the_main_thread() -> None:
    assert hang.main_stack(STACK) == [
        '  File "b.py", line 2 in dispatch',
        '  File "c.py", line 3 in run',
    ]
    assert hang.main_stack("") == ["(it wrote no stack)"]


def test_the_report_has_every_rank_with_its_collective_and_stack() -> None:
    signs = {0: sign(9, waits=True, call="all_reduce 'x', call 7 of axis sp"), 1: sign(10)}
    found = hang.find(signs, begun_ns=0, timeout=5.0, now_ns=NOW)
    assert found is not None
    text = hang.report(found, {0: STACK, 1: ""})
    assert "rank 0: step 3, waits in all_reduce 'x', call 7 of axis sp, for 9.0 s" in text
    assert "rank 1: step 3, for 10.0 s\n(it wrote no stack)" in text
    assert "in dispatch" in text

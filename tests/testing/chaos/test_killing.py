"""Kills are survived, and a resumption that forgets is found."""

from dataclasses import replace

import pytest

from weft.testing import kill
from weft.testing.chaos import killing
from weft.testing.chaos.result import Size


def test_a_run_is_killed_five_times_and_survives(
    least: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(killing, "LAYOUTS", {"dp2": ("parallel.dp=2",)})
    monkeypatch.setattr(killing, "ORDERS", ("overlapped",))
    result = killing.check(replace(least, limit=1))
    assert result.holds, result
    assert result.counts["kills"] == 5
    assert result.counts["at a fail-point"] == 2


def test_a_kill_that_lands_nowhere_is_a_fault(least: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killing, "LAYOUTS", {"dp2": ("parallel.dp=2",)})
    monkeypatch.setattr(killing, "TURNS", 1)
    monkeypatch.setattr(killing, "_strike", lambda *_: None)
    monkeypatch.setattr(killing, "_control", lambda _: "not now")
    result = killing.check(replace(least, limit=1))
    assert not result.holds
    assert len([fault for fault in result.faults if "no kill landed" in fault]) == 5


def test_every_layout_has_fail_points_and_meets_each_under_both_orders() -> None:
    assert killing.IN_STEP.keys() == killing.LAYOUTS.keys()
    met: dict[str, set[tuple[str, str]]] = {}
    cases = [(layout, order) for layout in killing.LAYOUTS for order in killing.ORDERS]
    for number in range(100):
        layout, order = cases[number % len(cases)]
        points = killing.IN_STEP[layout]
        visit = killing._visit(number, len(cases))
        met.setdefault(layout, set()).add((points[visit % len(points)], order))
    assert all(len(found) == 2 * len(killing.IN_STEP[name]) for name, found in met.items())


def test_a_sabotage_that_changes_nothing_is_no_control(
    least: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(killing, "shift_data", kill.honest)
    assert not killing._control(least)

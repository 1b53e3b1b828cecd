"""Kills are survived, and a resumption that forgets is found."""

import pytest

from weft.testing.chaos import killing
from weft.testing.chaos.result import Size


def test_a_few_kills_are_survived(least: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killing, "LAYOUTS", {"dp2": ("parallel.dp=2",)})
    monkeypatch.setattr(killing, "ORDERS", ("overlapped",))
    monkeypatch.setattr(killing, "IN_SAVE", ("before_manifest",))
    monkeypatch.setattr(killing, "IN_STEP", ("in_statistics",))
    result = killing.check(least)
    assert result.holds, result
    assert result.counts["kills"] >= 2

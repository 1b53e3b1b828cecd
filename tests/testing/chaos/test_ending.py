"""Stops, hangs and errors end as they should; what a check looks for can be missing."""

from dataclasses import replace

import pytest

from weft.testing.chaos import ending
from weft.testing.chaos.result import Size


@pytest.mark.parametrize("check", [ending.check_throw])
def test_one_of_each_ends_well(check, least: Size) -> None:
    result = check(replace(least, limit=1))
    assert result.holds, result


def test_a_stopped_rank_is_named(least: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "TIMEOUT", 1.0)
    monkeypatch.setattr(ending, "_control_hang", lambda _: "not now")
    result = ending.check_hang(replace(least, limit=1))
    assert result.holds, result
    assert result.counts["named right"] == 1

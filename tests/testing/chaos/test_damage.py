"""Cuts and harms: a checkpoint is whole or refused."""

import pytest

from weft.testing.chaos import damage
from weft.testing.chaos.result import Size


@pytest.mark.parametrize("check", [damage.check_damage, damage.check_fallback])
def test_a_little_harm_is_found(check, least: Size) -> None:
    result = check(least)
    assert result.holds, result


def test_a_power_cut_ends_a_save_where_it_is_told_to(least: Size) -> None:
    done = damage._tried(least.folder / "run", 5, {})
    assert len(done) == 5
    assert not (least.folder / "run" / "step-00000003").exists()
    assert damage._absent_or_whole(least.folder / "run", "") == []
    assert damage._control_prefixes(least)

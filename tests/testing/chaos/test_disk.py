"""A disk that fails is named, and nothing old is harmed."""

from weft.testing.chaos import disk
from weft.testing.chaos.result import Size


def test_a_few_broken_disks(least: Size) -> None:
    result = disk.check(least)
    assert result.holds, result
    assert result.counts["saves that failed"] == 2

"""Harmed shards and spoiled recipes are refused, and nothing else happens."""

from dataclasses import replace

from weft.testing.chaos import inputs
from weft.testing.chaos.result import Size


def test_a_few_harmed_shards(least: Size) -> None:
    result = inputs.check_shards(least)
    assert result.holds, result


def test_a_few_spoiled_recipes(least: Size) -> None:
    result = inputs.check_recipes(replace(least, limit=60))
    assert result.holds, result

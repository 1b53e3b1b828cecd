"""Overlap is on unless a recipe says otherwise."""

import pytest

from weft.config.overlap import OverlapConfig
from weft.errors import ConfigError


def test_overlap_is_the_default() -> None:
    assert OverlapConfig().order == "overlapped"


def test_an_unknown_order_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match='overlap.order = "serial"$'):
        OverlapConfig.model_validate({"order": "sequential"})

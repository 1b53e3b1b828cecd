"""Stretching: what may be left out is what the paper chose."""

import pytest

from weft.config.yarn import YarnConfig
from weft.errors import ConfigError


def test_the_ramp_may_be_left_out():
    found = YarnConfig(factor=4.0, original=4096)
    assert (found.beta_fast, found.beta_slow, found.truncate) == (32.0, 1.0, True)


def test_a_factor_must_be_positive():
    with pytest.raises(ConfigError, match=r"model.yarn.factor = 0.0: must be greater than 0"):
        YarnConfig(factor=0.0, original=4096)

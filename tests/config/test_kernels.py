"""Which bodies run is a matter of a few words."""

import pytest

from weft.config.kernels import KernelsConfig
from weft.errors import ConfigError


def test_the_default_is_fast_and_repeatable() -> None:
    assert KernelsConfig() == KernelsConfig(bodies="fast", attention="repeatable")


def test_an_unknown_kernel_is_refused_with_a_legal_one() -> None:
    with pytest.raises(ConfigError, match=r'kernels.attention = "flash"$'):
        KernelsConfig.model_validate({"attention": "flesh"})

"""What is compressed is asked for by name."""

import pytest

from weft.config.compression import CompressionConfig
from weft.errors import ConfigError


def test_nothing_is_compressed_unless_a_recipe_says_so() -> None:
    assert CompressionConfig().gradients == "fp32"


def test_an_unknown_wire_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match='compression.gradients = "bf16"$'):
        CompressionConfig.model_validate({"gradients": "bfloat16"})

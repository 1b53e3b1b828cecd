"""Releases are named as presets are, and each is the family that its file will say."""

import pytest

from weft.config import releases
from weft.config.model import ModelConfig
from weft.config.presets import PRESETS

MODELS = {
    name: made
    for name, made in vars(releases).items()
    if callable(made) and not isinstance(made, type) and not name.startswith("_")
}


@pytest.mark.parametrize("name", MODELS)
def test_a_release_is_a_preset(name):
    assert isinstance(MODELS[name](), ModelConfig)
    assert MODELS[name] in PRESETS.values()

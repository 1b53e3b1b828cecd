"""Every published model is legal, complete and named once."""

import pytest

from weft.config.model import ModelConfig
from weft.config.presets import PRESETS, preset
from weft.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_legal_model(name: str) -> None:
    assert isinstance(preset(name), ModelConfig)


ODD = {"qwen1.5-moe-a2.7b", "qwen2-57b-a14b"}  # 60 experts; 28 heads


@pytest.mark.parametrize("name", [n for n in PRESETS if not n.startswith("tiny") and n not in ODD])
def test_a_published_model_runs_on_a_node_of_eight(name: str) -> None:
    """Eight divides query heads and experts of all; only Qwen3 replicates key/value heads."""
    model = preset(name)
    assert model.heads % 8 == 0
    assert model.experts % 8 == 0
    assert model.kv_heads % 8 == 0 or name == "qwen3-30b-a3b"


def test_the_models_of_the_paper_share_its_vocabulary() -> None:
    paper = [
        "internal-352b",
        "mixtral-8x7b",
        "mixtral-8x22b",
        "hunyuan-large",
        "phi-3.5-moe",
        "deepseekmoe",
    ]
    assert {preset(name).vocab for name in paper} == {65536}


def test_no_two_presets_are_the_same_model() -> None:
    assert len({preset(name) for name in PRESETS}) == len(PRESETS)


def test_an_unknown_preset_is_told_the_nearest_or_all() -> None:
    with pytest.raises(ConfigError, match='nearest legal value: model.preset = "mixtral-8x7b"'):
        preset("mixtral-8x8b")
    with pytest.raises(ConfigError, match="legal values: internal-352b, mixtral-8x7b"):
        preset("?")

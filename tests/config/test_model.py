"""A model whose numbers cannot stand together is refused, with one that can."""

import pytest

from weft.config.model import ModelConfig
from weft.config.presets import tiny_deepseek_moe, tiny_mixtral
from weft.errors import ConfigError


def with_fields(model: ModelConfig, **fields: object) -> ModelConfig:
    return ModelConfig.model_validate({**dict(model), **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"hidden": 33},
            r"model.hidden = 33: must be even.*nearest legal value: model.hidden = 34",
        ),
        ({"head_dim": 7}, r"model.head_dim = 7: must be even.*model.head_dim = 8"),
        ({"kv_heads": 3}, r"model.kv_heads = 3: must divide model.heads \(4\).*model.kv_heads = 2"),
        ({"kv_heads": 8}, r"model.kv_heads = 8: must divide model.heads \(4\).*model.kv_heads = 4"),
        ({"top_k": 9}, r"model.top_k = 9: must be at most model.experts \(8\).*model.top_k = 8"),
        ({"dense_layers": 2}, r"must leave at least one of the 2 layers.*model.dense_layers = 1"),
        ({"dense_layers": 1}, r"model.dense_ffn_hidden = 0: must be the width.*= 96"),
        ({"dense_ffn_hidden": 64}, r"must be 0, since model.dense_layers is 0.*= 0"),
        ({"dense_at": [2]}, r"model.dense_at = .*must ascend, behind layer 0.*below 2"),
        ({"dense_at": [0]}, r"must ascend, behind layer 0, which has experts"),
        ({"shared_ffn_hidden": 8}, r"must be 0, since model.shared_experts is 0.*= 0"),
        ({"rotary_dim": 3}, r"model.rotary_dim = 3: must be even and at most.*= 4"),
        ({"rotary_dim": 10}, r"must be even and at most model.head_dim \(8\).*= 8"),
        ({"windowed": [0], "window": 4}, r"model.windowed.*mixtral see their whole document"),
        ({"family": "gpt_oss", "windowed": [0, 2], "window": 4}, r"must ascend, below.*\(2\)"),
        ({"family": "gpt_oss", "windowed": [0]}, r"model.window = 0: must be the window.*= 128"),
        ({"family": "gpt_oss", "window": 9}, r"model.window = 9.*0 where there is none"),
        ({"groups": 3}, r"model.groups = 3: must leave two of the 8 experts.*= 2"),
        ({"groups": 8}, r"model.groups = 8.*model.groups = 4"),
        ({"groups": 2, "top_groups": 3}, r"model.top_groups = 3: must be 1 to 2.*= 2"),
        ({"experts": 0}, r"model.experts = 0: must be at least 1"),
        ({"vocab": 2**31}, r"must be at most 2147483647; nearest legal value: model.vocab = 2147"),
        ({"family": "mixtrel"}, r'must be one of mixtral.*model.family = "mixtral"'),
        ({"score": "softmin"}, r'model.score = "softmax"'),
        ({"norm_eps": 0.0}, r"model.norm_eps = 0.0: must be greater than 0.*= 1e-05"),
        ({"aux_coef": -1.0}, r"model.aux_coef = -1.0: must be at least 0"),
        ({"tied": 1}, r"model.tied = 1: must be true or false"),
        (
            {"device_groups": 3},
            r"model.device_groups = 3: must divide model.experts \(8\).*model.device_groups = 2",
        ),
        ({"bias_rate": 0.1}, r"model.bias_rate = 0.1: must be 0, since model.router_bias is false"),
        ({"capacity": -0.5}, r"model.capacity = -0.5: must be at least 0"),
    ],
)
def test_a_broken_rule_is_told_with_a_legal_neighbour(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        with_fields(tiny_mixtral(), **fields)


def test_an_integer_stands_for_a_number() -> None:
    assert with_fields(tiny_mixtral(), rope_theta=500000).rope_theta == 500000.0


def test_grouped_heads_shared_experts_and_dense_layers_are_legal_together() -> None:
    model = with_fields(tiny_deepseek_moe(), kv_heads=1, score="sigmoid", router_bias=True)
    assert (model.shared_experts, model.dense_layers, model.kv_heads) == (2, 1, 1)

"""Published models of the families that came after Mixtral, under the names of their releases.

The numbers are those of the releases' own configuration files; `tests/model/published.toml` holds
what their authors say of their size.
"""

from weft.config.model import ModelConfig


def qwen1_5_moe_a2_7b() -> ModelConfig:
    """Qwen1.5-MoE-A2.7B: biases on queries, keys and values, and a gated shared expert."""
    return ModelConfig(
        family="qwen2_moe",
        vocab=151936,
        hidden=2048,
        layers=24,
        heads=16,
        kv_heads=16,
        head_dim=128,
        ffn_hidden=1408,
        experts=60,
        top_k=4,
        shared_experts=1,
        shared_ffn_hidden=5632,
        attention_bias=True,
        renormalise=False,
        aux_coef=0.001,
        rope_theta=1e6,
        norm_eps=1e-6,
    )


def qwen2_57b_a14b() -> ModelConfig:
    """Qwen2-57B-A14B: the same layer, wider."""
    return ModelConfig(
        family="qwen2_moe",
        vocab=151936,
        hidden=3584,
        layers=28,
        heads=28,
        kv_heads=4,
        head_dim=128,
        ffn_hidden=2560,
        experts=64,
        top_k=8,
        shared_experts=1,
        shared_ffn_hidden=20480,
        attention_bias=True,
        renormalise=False,
        aux_coef=0.001,
        rope_theta=1e6,
        norm_eps=1e-6,
    )


def olmoe_1b_7b_0924() -> ModelConfig:
    """OLMoE-1B-7B-0924: queries and keys normed over all heads together."""
    return ModelConfig(
        family="olmoe",
        vocab=50304,
        hidden=2048,
        layers=16,
        heads=16,
        kv_heads=16,
        head_dim=128,
        ffn_hidden=1024,
        experts=64,
        top_k=8,
        qk_norm=True,
        renormalise=False,
    )

"""Published models of the families that came after Mixtral, under the names of their releases.

The numbers are those of the releases' own configuration files; `tests/model/published.toml` holds
what their authors say of their size.
"""

from weft.config.model import ModelConfig
from weft.config.yarn import YarnConfig


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


def glm_4_5() -> ModelConfig:
    """GLM-4.5: half the channels rotated, QK norm, three dense layers, a bias that balances."""
    return ModelConfig(
        family="glm4_moe",
        vocab=151552,
        hidden=5120,
        layers=92,
        heads=96,
        kv_heads=8,
        head_dim=128,
        ffn_hidden=1536,
        experts=160,
        top_k=8,
        shared_experts=1,
        dense_layers=3,
        dense_ffn_hidden=12288,
        qk_norm=True,
        attention_bias=True,
        score="sigmoid",
        scaling=2.5,
        router_bias=True,
        aux_coef=0.0,
        rotary_dim=64,
        rope_theta=1e6,
    )


def glm_4_5_air() -> ModelConfig:
    """GLM-4.5-Air: the same layer, smaller and without QK norm."""
    return ModelConfig(
        family="glm4_moe",
        vocab=151552,
        hidden=4096,
        layers=46,
        heads=96,
        kv_heads=8,
        head_dim=128,
        ffn_hidden=1408,
        experts=128,
        top_k=8,
        shared_experts=1,
        dense_layers=1,
        dense_ffn_hidden=10944,
        attention_bias=True,
        score="sigmoid",
        router_bias=True,
        aux_coef=0.0,
        rotary_dim=64,
        rope_theta=1e6,
    )


def gpt_oss_120b() -> ModelConfig:
    """gpt-oss-120b: sinks, a window in every second layer, biases, clamped experts, YaRN."""
    return _gpt_oss(layers=36, experts=128)


def gpt_oss_20b() -> ModelConfig:
    """gpt-oss-20b: fewer layers, and fewer experts in each."""
    return _gpt_oss(layers=24, experts=32)


def _gpt_oss(*, layers: int, experts: int) -> ModelConfig:
    return ModelConfig(
        family="gpt_oss",
        vocab=201088,
        hidden=2880,
        layers=layers,
        heads=64,
        kv_heads=8,
        head_dim=64,
        ffn_hidden=2880,
        experts=experts,
        top_k=4,
        attention_bias=True,
        aux_coef=0.9,
        rope_theta=150000.0,
        yarn=YarnConfig(factor=32.0, original=4096, truncate=False),
        window=128,
        windowed=tuple(range(0, layers, 2)),
    )


def phi_3_5_moe_instruct() -> ModelConfig:
    """Phi-3.5-MoE without its stretched positions: for sequences of up to 4096 tokens alone.

    Its file asks for LongRoPE, whose frequencies depend on the length of a sequence: it is refused.
    """
    return ModelConfig(
        family="phimoe",
        vocab=32064,
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn_hidden=6400,
        experts=16,
        top_k=2,
        attention_bias=True,
        aux_coef=0.0,
    )

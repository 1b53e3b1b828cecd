"""Published models as functions, so that a recipe names one and overrides what it likes.

Two sorts. The six of the paper's Table 2, which gives shapes only: their vocabulary is the paper's
65,536 and their constants are the defaults. And releases, under the names of their releases, with
the constants of their own configuration files. Table 2 lists routed experts alone; the shared ones
here make the totals come out (`model.count` is tested against published totals).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from weft.config.branch import closest_name, refusal, written
from weft.config.model import ModelConfig
from weft.config.releases import (
    glm_4_5,
    glm_4_5_air,
    gpt_oss_20b,
    gpt_oss_120b,
    olmoe_1b_7b_0924,
    phi_3_5_moe_instruct,
    qwen1_5_moe_a2_7b,
    qwen2_57b_a14b,
)
from weft.errors import ConfigError

_PAPER_VOCAB = 65536  # paper, section 6.1


def internal_352b() -> ModelConfig:
    """The paper's 352B model: 32 experts of which a token visits 3, and one it always visits."""
    return ModelConfig(
        family="deepseek_moe",
        vocab=_PAPER_VOCAB,
        hidden=4096,
        layers=60,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn_hidden=14336,
        experts=32,
        top_k=3,
        shared_experts=1,
    )


def mixtral_8x7b() -> ModelConfig:
    """Mixtral-8x7B as the paper trains it."""
    return ModelConfig(
        family="mixtral",
        vocab=_PAPER_VOCAB,
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn_hidden=14336,
        experts=8,
        top_k=2,
    )


def mixtral_8x22b() -> ModelConfig:
    """Mixtral-8x22B as the paper trains it."""
    return ModelConfig(
        family="mixtral",
        vocab=_PAPER_VOCAB,
        hidden=6144,
        layers=56,
        heads=48,
        kv_heads=8,
        head_dim=128,
        ffn_hidden=16384,
        experts=8,
        top_k=2,
    )


def hunyuan_large() -> ModelConfig:
    """Hunyuan-Large as the paper trains it, with the shared expert of its release."""
    return ModelConfig(
        family="deepseek_moe",
        vocab=_PAPER_VOCAB,
        hidden=6400,
        layers=64,
        heads=80,
        kv_heads=8,
        head_dim=80,
        ffn_hidden=18304,
        experts=16,
        top_k=1,
        shared_experts=1,
        renormalise=False,  # of one choice, the normalised weight would always be 1
    )


def phi_3_5_moe() -> ModelConfig:
    """The shape of Phi-3.5-MoE as the paper trains it; the release has another norm and router."""
    return ModelConfig(
        family="mixtral",
        vocab=_PAPER_VOCAB,
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn_hidden=6400,
        experts=16,
        top_k=2,
    )


def deepseekmoe() -> ModelConfig:
    """DeepSeekMoE as the paper trains it: experts in every layer, two of them shared."""
    return ModelConfig(
        family="deepseek_moe",
        vocab=_PAPER_VOCAB,
        hidden=2048,
        layers=28,
        heads=16,
        kv_heads=16,
        head_dim=128,
        ffn_hidden=1408,
        experts=64,
        top_k=6,
        shared_experts=2,
        renormalise=False,
    )


def mixtral_8x7b_v0_1() -> ModelConfig:
    """Mixtral-8x7B-v0.1 as released."""
    return ModelConfig(
        family="mixtral",
        vocab=32000,
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn_hidden=14336,
        experts=8,
        top_k=2,
        aux_coef=0.02,
        rope_theta=1e6,
    )


def qwen3_30b_a3b() -> ModelConfig:
    """Qwen3-30B-A3B as released: 128 narrow experts, and norms on queries and keys."""
    return ModelConfig(
        family="qwen3_moe",
        vocab=151936,
        hidden=2048,
        layers=48,
        heads=32,
        kv_heads=4,
        head_dim=128,
        ffn_hidden=768,
        experts=128,
        top_k=8,
        qk_norm=True,
        aux_coef=0.001,
        rope_theta=1e6,
        norm_eps=1e-6,
    )


def deepseek_moe_16b() -> ModelConfig:
    """DeepSeekMoE-16B as released: one dense layer leads, gate weights are not renormalised."""
    return ModelConfig(
        family="deepseek_moe",
        vocab=102400,
        hidden=2048,
        layers=28,
        heads=16,
        kv_heads=16,
        head_dim=128,
        ffn_hidden=1408,
        experts=64,
        top_k=6,
        shared_experts=2,
        dense_layers=1,
        dense_ffn_hidden=10944,
        renormalise=False,
        aux_coef=0.001,
        norm_eps=1e-6,
    )


def tiny_mixtral() -> ModelConfig:
    """A Mixtral of about 100 thousand parameters: seconds on a laptop."""
    return ModelConfig(
        family="mixtral",
        vocab=257,
        hidden=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        ffn_hidden=48,
        experts=8,
        top_k=2,
    )


def tiny_qwen3_moe() -> ModelConfig:
    """A Qwen3-MoE of the same size: QK norm, and heads wider together than the residual stream."""
    return ModelConfig(
        family="qwen3_moe",
        vocab=257,
        hidden=32,
        layers=2,
        heads=8,
        kv_heads=2,
        head_dim=8,
        ffn_hidden=16,
        experts=16,
        top_k=4,
        qk_norm=True,
        norm_eps=1e-6,
    )


def tiny_deepseek_moe() -> ModelConfig:
    """A DeepSeekMoE of the same size: a dense first layer, and shared experts."""
    return ModelConfig(
        family="deepseek_moe",
        vocab=257,
        hidden=32,
        layers=3,
        heads=4,
        kv_heads=4,
        head_dim=8,
        ffn_hidden=24,
        experts=8,
        top_k=3,
        shared_experts=2,
        dense_layers=1,
        dense_ffn_hidden=80,
        renormalise=False,
    )


PRESETS: Mapping[str, Callable[[], ModelConfig]] = MappingProxyType(
    {
        "internal-352b": internal_352b,
        "mixtral-8x7b": mixtral_8x7b,
        "mixtral-8x22b": mixtral_8x22b,
        "hunyuan-large": hunyuan_large,
        "phi-3.5-moe": phi_3_5_moe,
        "deepseekmoe": deepseekmoe,
        "mixtral-8x7b-v0.1": mixtral_8x7b_v0_1,
        "qwen3-30b-a3b": qwen3_30b_a3b,
        "deepseek-moe-16b": deepseek_moe_16b,
        "qwen1.5-moe-a2.7b": qwen1_5_moe_a2_7b,
        "qwen2-57b-a14b": qwen2_57b_a14b,
        "olmoe-1b-7b-0924": olmoe_1b_7b_0924,
        "glm-4.5": glm_4_5,
        "glm-4.5-air": glm_4_5_air,
        "phi-3.5-moe-instruct": phi_3_5_moe_instruct,
        "gpt-oss-120b": gpt_oss_120b,
        "gpt-oss-20b": gpt_oss_20b,
        "tiny-mixtral": tiny_mixtral,
        "tiny-qwen3-moe": tiny_qwen3_moe,
        "tiny-deepseek-moe": tiny_deepseek_moe,
    }
)


def preset(name: str) -> ModelConfig:
    """The model of that name.

    Raises:
        ConfigError: no model has it; the nearest name is told.

    Example:
        >>> preset("mixtral-8x7b").experts
        8
    """
    if name in PRESETS:
        return PRESETS[name]()
    meant = closest_name(name, PRESETS)
    if meant is None:
        legal = ", ".join(PRESETS)
        raise ConfigError(f"model.preset = {written(name)}: unknown preset; legal values: {legal}")
    raise ConfigError(refusal("model.preset", name, "unknown preset", meant))

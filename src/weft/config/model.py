"""The `[model]` branch: the shape of the network, its router and its constants."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from weft.config.branch import (
    INDEX_LIMIT,
    Branch,
    Count,
    NonNegative,
    Positive,
    Size,
    as_tuple,
    divisors,
    nearest,
    refusal,
)
from weft.config.yarn import YarnConfig
from weft.errors import ConfigError

FamilyName = Literal[
    "mixtral",
    "qwen3_moe",
    "deepseek_moe",
    "qwen2_moe",
    "olmoe",
    "glm4_moe",
    "gpt_oss",
    "phimoe",
]
Layers = Annotated[tuple[Count, ...], BeforeValidator(as_tuple)]


class ModelConfig(Branch):
    """A mixture-of-experts language model.

    Raises:
        ConfigError: a value breaks a rule of its own, or two of them cannot stand together.
    """

    section: ClassVar[str] = "model"

    family: FamilyName = Field(
        examples=["mixtral"], description="the naming and layer functions to follow"
    )
    vocab: Size = Field(examples=[32768], description="the number of token ids, padding included")
    hidden: Size = Field(examples=[128], description="the width of the residual stream")
    layers: Size = Field(examples=[4], description="the number of layers")
    heads: Size = Field(examples=[4], description="the number of query heads")
    kv_heads: Size = Field(examples=[2], description="the number of key/value heads")
    head_dim: Size = Field(examples=[32], description="the channels of a head")
    ffn_hidden: Size = Field(examples=[256], description="the hidden width of one expert")
    experts: Size = Field(examples=[8], description="the number of routed experts of a layer")
    top_k: Size = Field(examples=[2], description="the number of experts a token visits")
    shared_experts: Count = Field(default=0, description="experts that every token visits")
    shared_ffn_hidden: Count = Field(
        default=0, description="their hidden width together; 0: shared_experts * ffn_hidden"
    )
    dense_layers: Count = Field(default=0, description="leading layers without experts")
    dense_at: Layers = Field(default=(), description="further layers without experts, ascending")
    dense_ffn_hidden: Count = Field(default=0, description="the hidden width of a dense layer")
    qk_norm: bool = Field(default=False, description="whether queries and keys are normed")
    attention_bias: bool = Field(
        default=False, description="whether queries, keys and values have a bias"
    )
    score: Literal["softmax", "sigmoid"] = Field(
        default="softmax", description="how logits become scores"
    )
    renormalise: bool = Field(
        default=True, description="whether a token's gate weights are made to sum to 1"
    )
    # 0.01: the releases of Phi-3.5-MoE
    router_jitter: NonNegative = Field(
        default=0.01, description="half the band of scores that count as equal in a sparse mixer"
    )
    groups: Size = Field(default=1, description="the groups that experts are chosen from")
    top_groups: Size = Field(default=1, description="the groups a token may choose from")
    scaling: Positive = Field(default=1.0, description="a factor on the gate weights")
    router_bias: bool = Field(default=False, description="whether a bias steers the selection")
    # 0.01: Switch Transformer (arXiv 2101.03961), section 2.2
    aux_coef: NonNegative = Field(default=0.01, description="the weight of the balance loss")
    z_coef: NonNegative = Field(default=0.0, description="the weight of the router z-loss")
    device_groups: Size = Field(
        default=1, description="the groups of neighbouring experts that are balanced as one each"
    )
    device_coef: NonNegative = Field(
        default=0.0, description="the weight of the balance loss of groups of experts"
    )
    sequence_coef: NonNegative = Field(
        default=0.0, description="the weight of the balance loss within each sequence"
    )
    global_coef: NonNegative = Field(
        default=0.0, description="the weight of the balance loss against the load of the last step"
    )
    bias_rate: NonNegative = Field(
        default=0.0, description="what a step moves the bias of an expert by, towards an even load"
    )
    capacity: NonNegative = Field(
        default=0.0,
        description="the even shares of choices a group of experts takes, the rest is dropped; "
        "0 drops nothing",
    )
    # 10000: RoFormer (arXiv 2104.09864), section 3.2.2
    rope_theta: Positive = Field(default=10000.0, description="the base of the rotary frequencies")
    rotary_dim: Count = Field(
        default=0, description="the channels of a head that are rotated; 0: all"
    )
    yarn: YarnConfig | None = Field(
        default=None,
        examples=[{"factor": 32.0, "original": 4096}],
        description="how rotary frequencies are stretched",
    )
    window: Count = Field(
        default=0, description="the tokens that a token of a windowed layer sees, itself among them"
    )
    windowed: Layers = Field(default=(), description="the layers that see a window, ascending")
    # 1.702: the sigmoid that comes nearest to GELU (arXiv 1606.08415); 7: the releases of gpt-oss
    swiglu_alpha: Positive = Field(
        default=1.702, description="the slope of the gate's sigmoid, where experts are clamped"
    )
    swiglu_limit: Positive = Field(
        default=7.0, description="the limit of gate and up, where experts are clamped"
    )
    norm_eps: Positive = Field(default=1e-5, description="the epsilon of every norm")
    tied: bool = Field(default=False, description="whether the head is the embedding")
    # 0.02: GPT-2, and the default of every family supported here
    init_std: Positive = Field(default=0.02, description="the deviation of the initial weights")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_attention(self)
        _check_experts(self)
        _check_mixer(self)
        _check_rotation(self)
        _check_windows(self)
        _check_groups(self)
        _check_shared(self)
        _check_balance(self)
        _check_dense(self)
        return self


def _check_attention(model: ModelConfig) -> None:
    for name, reason in (
        ("hidden", "must be even: rows are moved in words of two elements"),
        ("head_dim", "must be even: a rotation turns pairs of channels"),
    ):
        value = getattr(model, name)
        if value % 2:
            legal = value + 1 if value < INDEX_LIMIT else value - 1
            raise ConfigError(refusal(f"model.{name}", value, reason, legal))
    if model.heads % model.kv_heads:
        rule = f"must divide model.heads ({model.heads})"
        legal = nearest(model.kv_heads, divisors(model.heads))
        raise ConfigError(refusal("model.kv_heads", model.kv_heads, rule, legal))


def _check_experts(model: ModelConfig) -> None:
    if model.top_k > model.experts:
        rule = f"must be at most model.experts ({model.experts})"
        raise ConfigError(refusal("model.top_k", model.top_k, rule, model.experts))


def _check_mixer(model: ModelConfig) -> None:
    if model.family != "phimoe":
        return
    if model.top_k != 2:
        rule = "must be 2: the router of Phi has a rule for the first choice and one for the second"
        raise ConfigError(refusal("model.top_k", model.top_k, rule, 2))
    for name in ("shared_experts", "dense_layers"):
        if getattr(model, name):
            rule = "must be 0: every layer of Phi has routed experts and nothing beside them"
            raise ConfigError(refusal(f"model.{name}", getattr(model, name), rule, 0))


def _check_rotation(model: ModelConfig) -> None:
    if model.rotary_dim % 2 or model.rotary_dim > model.head_dim:
        rule = f"must be even and at most model.head_dim ({model.head_dim})"
        legal = min(model.rotary_dim + model.rotary_dim % 2, model.head_dim)
        raise ConfigError(refusal("model.rotary_dim", model.rotary_dim, rule, legal))


def _check_windows(model: ModelConfig) -> None:
    found, legal = model.windowed, sorted({i for i in model.windowed if i < model.layers})
    if found and model.family != "gpt_oss":
        rule = f"must be empty: the layers of {model.family} see their whole document"
        raise ConfigError(refusal("model.windowed", found, rule, ()))
    if list(found) != legal:
        rule = f"must ascend, below model.layers ({model.layers})"
        raise ConfigError(refusal("model.windowed", found, rule, tuple(legal)))
    if bool(found) != bool(model.window):
        rule = f"must be the window of the {len(found)} windowed layers, and 0 where there is none"
        # 128: the window of gpt-oss
        raise ConfigError(refusal("model.window", model.window, rule, 128 if found else 0))
    plain = not model.shared_experts and not model.dense_layers and not model.dense_at
    if found and not plain:
        rule = "must be empty beside shared experts and dense layers"
        raise ConfigError(refusal("model.windowed", found, rule, ()))


def _check_groups(model: ModelConfig) -> None:
    if model.groups > 1 and (model.experts % model.groups or model.experts < 2 * model.groups):
        rule = f"must leave two of the {model.experts} experts or more to each group, all equal"
        equal = [d for d in divisors(model.experts) if 2 * d <= model.experts]
        legal = nearest(model.groups, equal or [1])
        raise ConfigError(refusal("model.groups", model.groups, rule, legal))
    least = -(-model.top_k * model.groups // model.experts)
    if not least <= model.top_groups <= model.groups:
        rule = f"must be {least} to {model.groups}, so that top_k experts are in the groups"
        legal = min(max(model.top_groups, least), model.groups)
        raise ConfigError(refusal("model.top_groups", model.top_groups, rule, legal))


def _check_shared(model: ModelConfig) -> None:
    if model.shared_ffn_hidden and not model.shared_experts:
        rule = "must be 0, since model.shared_experts is 0"
        raise ConfigError(refusal("model.shared_ffn_hidden", model.shared_ffn_hidden, rule, 0))


def _check_balance(model: ModelConfig) -> None:
    if model.experts % model.device_groups:
        rule = f"must divide model.experts ({model.experts})"
        legal = nearest(model.device_groups, divisors(model.experts))
        raise ConfigError(refusal("model.device_groups", model.device_groups, rule, legal))
    if model.bias_rate and not model.router_bias:
        rule = "must be 0, since model.router_bias is false and there is no bias to move"
        raise ConfigError(refusal("model.bias_rate", model.bias_rate, rule, 0.0))


def _check_dense(model: ModelConfig) -> None:
    dense = (*range(model.dense_layers), *model.dense_at)
    if len(dense) >= model.layers:
        rule = f"must leave at least one of the {model.layers} layers to experts"
        legal = max(model.layers - 1 - len(model.dense_at), 0)
        raise ConfigError(refusal("model.dense_layers", model.dense_layers, rule, legal))
    lead, rest = model.dense_layers, model.dense_at
    if list(rest) != sorted({i for i in rest if lead < i < model.layers}):
        rule = f"must ascend, behind layer {lead}, which has experts, and below {model.layers}"
        legal = [i for i in sorted(set(rest)) if lead < i < model.layers]
        raise ConfigError(refusal("model.dense_at", rest, rule, tuple(legal)))
    if dense and not model.dense_ffn_hidden:
        rule = f"must be the width of the {len(dense)} dense layers"
        legal = model.top_k * model.ffn_hidden  # the width a token sees in the other layers
        raise ConfigError(refusal("model.dense_ffn_hidden", 0, rule, legal))
    if model.dense_ffn_hidden and not dense:
        rule = "must be 0, since model.dense_layers is 0"
        raise ConfigError(refusal("model.dense_ffn_hidden", model.dense_ffn_hidden, rule, 0))

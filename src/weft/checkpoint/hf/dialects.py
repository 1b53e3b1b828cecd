"""Which dialects Hugging Face checkpoints are written in, by their `model_type`.

The coefficient of the balance loss is taken over as a number. The loss it scales is weft's own:
that of DeepSeek, over micro-batches; Mixtral's and Qwen's pool all layers and count each choice.
"""

from collections.abc import Mapping
from types import MappingProxyType

from weft.checkpoint.hf.dialect import Demand, Dialect, Packed

_TRUNK = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "layers.{i}.norm1": "model.layers.{i}.input_layernorm.weight",
    "layers.{i}.norm2": "model.layers.{i}.post_attention_layernorm.weight",
    "layers.{i}.q": "model.layers.{i}.self_attn.q_proj.weight",
    "layers.{i}.k": "model.layers.{i}.self_attn.k_proj.weight",
    "layers.{i}.v": "model.layers.{i}.self_attn.v_proj.weight",
    "layers.{i}.out": "model.layers.{i}.self_attn.o_proj.weight",
}
_QK_NORM = {
    "layers.{i}.q_norm": "model.layers.{i}.self_attn.q_norm.weight",
    "layers.{i}.k_norm": "model.layers.{i}.self_attn.k_norm.weight",
}
_ROUTED = {
    "layers.{i}.router": "model.layers.{i}.mlp.gate.weight",
    "layers.{i}.experts.{e}.gate": "model.layers.{i}.mlp.experts.{e}.gate_proj.weight",
    "layers.{i}.experts.{e}.up": "model.layers.{i}.mlp.experts.{e}.up_proj.weight",
    "layers.{i}.experts.{e}.down": "model.layers.{i}.mlp.experts.{e}.down_proj.weight",
}
_DENSE = {
    "layers.{i}.dense.gate": "model.layers.{i}.mlp.gate_proj.weight",
    "layers.{i}.dense.up": "model.layers.{i}.mlp.up_proj.weight",
    "layers.{i}.dense.down": "model.layers.{i}.mlp.down_proj.weight",
}
_SHARED = {
    "layers.{i}.shared.gate": "model.layers.{i}.mlp.shared_experts.gate_proj.weight",
    "layers.{i}.shared.up": "model.layers.{i}.mlp.shared_experts.up_proj.weight",
    "layers.{i}.shared.down": "model.layers.{i}.mlp.shared_experts.down_proj.weight",
}
_QKV_BIAS = {
    "layers.{i}.q_bias": "model.layers.{i}.self_attn.q_proj.bias",
    "layers.{i}.k_bias": "model.layers.{i}.self_attn.k_proj.bias",
    "layers.{i}.v_bias": "model.layers.{i}.self_attn.v_proj.bias",
}
_GATED = {
    "layers.{i}.shared.gate": "model.layers.{i}.mlp.shared_expert.gate_proj.weight",
    "layers.{i}.shared.up": "model.layers.{i}.mlp.shared_expert.up_proj.weight",
    "layers.{i}.shared.down": "model.layers.{i}.mlp.shared_expert.down_proj.weight",
    "layers.{i}.shared_gate": "model.layers.{i}.mlp.shared_expert_gate.weight",
}
_BIAS = {"layers.{i}.router_bias": "model.layers.{i}.mlp.gate.e_score_correction_bias"}
_BLOCK_SPARSE = {
    "layers.{i}.router": "model.layers.{i}.block_sparse_moe.gate.weight",
    "layers.{i}.experts.{e}.gate": "model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight",
    "layers.{i}.experts.{e}.up": "model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight",
    "layers.{i}.experts.{e}.down": "model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight",
}

_SHAPE = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "top_k": "num_experts_per_tok",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
    "init_std": "initializer_range",
}
_DEEPSEEK = {
    **_SHAPE,
    "ffn_hidden": "moe_intermediate_size",
    "experts": "n_routed_experts",
    "shared_experts": "n_shared_experts",
    "renormalise": "norm_topk_prob",
    "aux_coef": "aux_loss_alpha",
}
# What the configuration classes of all dialects take where a file says nothing.
_DEFAULTS = {"tied": False, "init_std": 0.02}

_NO_LATENTS = "multi-head latent attention is not computed"
_ONE_GROUP = "experts are chosen among all, not among groups"
_DEMANDS = (
    Demand(key="hidden_act", legal=("silu", "swish"), rule="experts are gated by SiLU"),
    Demand(key="attention_bias", legal=(False,), rule="projections of attention have no bias"),
    Demand(key="mlp_bias", legal=(False,), rule="experts have no bias", is_written=False),
    Demand(key="attention_dropout", legal=(0.0,), rule="nothing is dropped"),
    Demand(key="kv_lora_rank", rule=_NO_LATENTS, is_written=False),
    Demand(
        key="quantization_config",
        rule="weights are read in the dtype they are used in (transformers writes them so: "
        "from_pretrained with Mxfp4Config(dequantize=True) for MXFP4, then save_pretrained)",
        is_written=False,
    ),
)

MIXTRAL = Dialect(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    family="mixtral",
    tensors=MappingProxyType({**_TRUNK, **_BLOCK_SPARSE}),
    keys=MappingProxyType(
        {
            **_SHAPE,
            "ffn_hidden": "intermediate_size",
            "experts": "num_local_experts",
            "aux_coef": "router_aux_loss_coef",
        }
    ),
    synonyms=MappingProxyType({"num_local_experts": "num_experts"}),
    defaults=MappingProxyType({**_DEFAULTS, "aux_coef": 0.001}),
    constants=MappingProxyType({}),
    demands=(
        *_DEMANDS,
        Demand(key="router_jitter_noise", legal=(0.0,), rule="routers see no noise"),
    ),
)

_ALL_EXPERTS = "model.layers.{i}.mlp.experts."
_GPT_OSS = {
    **_TRUNK,
    **_QKV_BIAS,
    "layers.{i}.out_bias": "model.layers.{i}.self_attn.o_proj.bias",
    "layers.{i}.sinks": "model.layers.{i}.self_attn.sinks",
    "layers.{i}.router": "model.layers.{i}.mlp.router.weight",
    "layers.{i}.router_offset": "model.layers.{i}.mlp.router.bias",
    "layers.{i}.experts.{e}.gate": Packed(
        disk=f"{_ALL_EXPERTS}gate_up_proj", step=2, transposed=True
    ),
    "layers.{i}.experts.{e}.up": Packed(
        disk=f"{_ALL_EXPERTS}gate_up_proj", start=1, step=2, transposed=True
    ),
    "layers.{i}.experts.{e}.down": Packed(disk=f"{_ALL_EXPERTS}down_proj", transposed=True),
    "layers.{i}.experts.{e}.gate_bias": Packed(disk=f"{_ALL_EXPERTS}gate_up_proj_bias", step=2),
    "layers.{i}.experts.{e}.up_bias": Packed(
        disk=f"{_ALL_EXPERTS}gate_up_proj_bias", start=1, step=2
    ),
    "layers.{i}.experts.{e}.down_bias": Packed(disk=f"{_ALL_EXPERTS}down_proj_bias"),
}

QWEN3_MOE = Dialect(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    family="qwen3_moe",
    tensors=MappingProxyType({**_TRUNK, **_QK_NORM, **_ROUTED, **_DENSE}),
    keys=MappingProxyType(
        {
            **_SHAPE,
            "ffn_hidden": "moe_intermediate_size",
            "experts": "num_experts",
            "renormalise": "norm_topk_prob",
            "aux_coef": "router_aux_loss_coef",
        }
    ),
    synonyms=MappingProxyType({"num_experts": "num_local_experts"}),
    defaults=MappingProxyType({**_DEFAULTS, "renormalise": False, "aux_coef": 0.001}),
    constants=MappingProxyType({"qk_norm": True}),
    demands=_DEMANDS,
    dense_key="mlp_only_layers",
    step_key="decoder_sparse_step",
    window_switch="use_sliding_window",
)

QWEN2_MOE = Dialect(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    family="qwen2_moe",
    tensors=MappingProxyType({**_TRUNK, **_QKV_BIAS, **_ROUTED, **_DENSE, **_GATED}),
    keys=MappingProxyType(
        {
            **_SHAPE,
            "ffn_hidden": "moe_intermediate_size",
            "shared_ffn_hidden": "shared_expert_intermediate_size",
            "experts": "num_experts",
            "renormalise": "norm_topk_prob",
            "aux_coef": "router_aux_loss_coef",
            "attention_bias": "qkv_bias",
        }
    ),
    synonyms=MappingProxyType({}),
    defaults=MappingProxyType(
        {**_DEFAULTS, "renormalise": False, "aux_coef": 0.001, "attention_bias": True}
    ),
    constants=MappingProxyType({"shared_experts": 1}),
    demands=_DEMANDS,
    dense_key="mlp_only_layers",
    step_key="decoder_sparse_step",
    has_head_dim=False,
    window_switch="use_sliding_window",
)

OLMOE = Dialect(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    family="olmoe",
    tensors=MappingProxyType({**_TRUNK, **_QK_NORM, **_ROUTED}),
    keys=MappingProxyType(
        {
            **_SHAPE,
            "ffn_hidden": "intermediate_size",
            "experts": "num_experts",
            "renormalise": "norm_topk_prob",
            "aux_coef": "router_aux_loss_coef",
        }
    ),
    synonyms=MappingProxyType({}),
    defaults=MappingProxyType({**_DEFAULTS, "renormalise": False, "aux_coef": 0.01}),
    constants=MappingProxyType({"qk_norm": True}),
    demands=(
        *_DEMANDS,
        Demand(key="clip_qkv", rule="queries, keys and values are not clipped", is_written=False),
    ),
    has_head_dim=False,
)

DEEPSEEK = Dialect(
    model_type="deepseek",  # of DeepSeekMoE-16B, whose release brings its own classes
    architecture="DeepseekForCausalLM",
    family="deepseek_moe",
    tensors=MappingProxyType({**_TRUNK, **_ROUTED, **_DENSE, **_SHARED}),
    keys=MappingProxyType(_DEEPSEEK),
    synonyms=MappingProxyType({}),
    defaults=MappingProxyType(
        {**_DEFAULTS, "renormalise": False, "aux_coef": 0.001, "shared_experts": 0}
    ),
    constants=MappingProxyType({}),
    demands=(
        *_DEMANDS,
        Demand(key="scoring_func", legal=("softmax",), rule="routers of this dialect use softmax"),
        Demand(key="moe_layer_freq", legal=(1,), rule="layers without experts lead"),
    ),
    dense_key="first_k_dense_replace",
    has_head_dim=False,
    renormalises_one=False,
)

DEEPSEEK_V2 = Dialect(
    model_type="deepseek_v2",  # with plain attention, as the language model of DeepSeek-OCR has
    architecture="DeepseekV2ForCausalLM",
    family="deepseek_moe",
    tensors=DEEPSEEK.tensors,
    keys=MappingProxyType({**DEEPSEEK.keys, "scaling": "routed_scaling_factor"}),
    synonyms=MappingProxyType({}),
    defaults=MappingProxyType({**DEEPSEEK.defaults, "scaling": 1.0}),
    constants=MappingProxyType({}),
    demands=(
        *DEEPSEEK.demands,
        Demand(key="use_mla", legal=(False,), rule=_NO_LATENTS, is_needed=True),
        *(
            Demand(key=key, legal=(0,), rule=_NO_LATENTS, is_written=False)
            for key in ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        ),
        Demand(key="topk_method", legal=("greedy",), rule=_ONE_GROUP),
        Demand(key="n_group", legal=(1,), rule=_ONE_GROUP),
        Demand(key="topk_group", legal=(1,), rule=_ONE_GROUP),
        # the release scales gate weights or renormalises them
        Demand(key="norm_topk_prob", legal=(False,), rule="gate weights are scaled"),
        Demand(key="ep_size", legal=(1,), rule="the layout is the recipe's", is_written=False),
    ),
    dense_key="first_k_dense_replace",
    has_head_dim=False,
)

DOTS1 = Dialect(
    model_type="dots1",
    architecture="Dots1ForCausalLM",
    family="deepseek_moe",
    tensors=MappingProxyType({**_TRUNK, **_QK_NORM, **_ROUTED, **_DENSE, **_SHARED, **_BIAS}),
    keys=MappingProxyType({**_DEEPSEEK, "scaling": "routed_scaling_factor"}),
    synonyms=MappingProxyType({}),
    # no balance loss: the bias of the router is there instead of it
    defaults=MappingProxyType({**_DEFAULTS, "renormalise": False, "aux_coef": 0.0, "scaling": 1.0}),
    constants=MappingProxyType({"qk_norm": True, "score": "sigmoid", "router_bias": True}),
    demands=(
        *_DEMANDS,
        Demand(key="n_group", legal=(1,), rule=_ONE_GROUP),
        Demand(key="topk_group", legal=(1,), rule=_ONE_GROUP),
        Demand(
            key="scoring_func",
            legal=("sigmoid", "noaux_tc"),
            rule="routers of this dialect use a sigmoid",
        ),
        Demand(
            key="topk_method",
            legal=("noaux_tc",),
            rule="a bias alone steers the selection",
            is_written=False,
        ),
        Demand(key="moe_layer_freq", legal=(1,), rule="layers without experts lead"),
    ),
    dense_key="first_k_dense_replace",
    window_start="max_window_layers",
)

GLM4_MOE = Dialect(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    family="glm4_moe",
    tensors=MappingProxyType(
        {**_TRUNK, **_QKV_BIAS, **_QK_NORM, **_ROUTED, **_DENSE, **_SHARED, **_BIAS}
    ),
    keys=MappingProxyType(
        {
            **{field: key for field, key in _DEEPSEEK.items() if field != "aux_coef"},
            "scaling": "routed_scaling_factor",
            "groups": "n_group",
            "top_groups": "topk_group",
            "attention_bias": "attention_bias",
            "qk_norm": "use_qk_norm",
        }
    ),
    synonyms=MappingProxyType({"n_routed_experts": "num_local_experts"}),
    defaults=MappingProxyType(
        {
            **_DEFAULTS,
            "renormalise": True,
            "scaling": 1.0,
            "groups": 1,
            "top_groups": 1,
            "attention_bias": False,
            "qk_norm": False,
            "shared_experts": 1,
        }
    ),
    # no balance loss: the bias of the router is there instead of it
    constants=MappingProxyType({"score": "sigmoid", "router_bias": True, "aux_coef": 0.0}),
    demands=tuple(d for d in _DEMANDS if d.key != "attention_bias"),
    dense_key="first_k_dense_replace",
    rotary_share=0.5,
    next_key="num_nextn_predict_layers",
)

PHIMOE = Dialect(
    model_type="phimoe",
    architecture="PhimoeForCausalLM",
    family="phimoe",
    tensors=MappingProxyType(
        {
            **_TRUNK,
            **_QKV_BIAS,
            **_BLOCK_SPARSE,
            "norm_bias": "model.norm.bias",
            "head_bias": "lm_head.bias",
            "layers.{i}.norm1_bias": "model.layers.{i}.input_layernorm.bias",
            "layers.{i}.norm2_bias": "model.layers.{i}.post_attention_layernorm.bias",
            "layers.{i}.out_bias": "model.layers.{i}.self_attn.o_proj.bias",
        }
    ),
    keys=MappingProxyType(
        {
            **_SHAPE,
            "ffn_hidden": "intermediate_size",
            "experts": "num_local_experts",
            "aux_coef": "router_aux_loss_coef",
            "attention_bias": "attention_bias",
            "router_jitter": "router_jitter_noise",
        }
    ),
    synonyms=MappingProxyType({"num_local_experts": "num_experts"}),
    defaults=MappingProxyType(
        {**_DEFAULTS, "aux_coef": 0.001, "attention_bias": False, "router_jitter": 0.01}
    ),
    constants=MappingProxyType({}),
    demands=(
        *(d for d in _DEMANDS if d.key != "attention_bias"),
        Demand(key="lm_head_bias", legal=(True,), rule="the head has a bias"),
        Demand(key="hidden_dropout", legal=(0.0,), rule="nothing is dropped", is_written=False),
        # noise on what routers see in training: left out, as sampling is (ops/sparsemixer.py)
        Demand(key="input_jitter_noise", legal=(0.0, 0.01), rule="routers see no noise"),
    ),
    has_head_dim=False,
    theta=1e6,
)

GPT_OSS = Dialect(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    family="gpt_oss",
    tensors=MappingProxyType(_GPT_OSS),
    keys=MappingProxyType(
        {
            **_SHAPE,
            "ffn_hidden": "intermediate_size",
            "experts": "num_local_experts",
            "aux_coef": "router_aux_loss_coef",
            "attention_bias": "attention_bias",
            "swiglu_alpha": "swiglu_alpha",
            "swiglu_limit": "swiglu_limit",
        }
    ),
    synonyms=MappingProxyType({"num_local_experts": "num_experts"}),
    defaults=MappingProxyType(
        {
            **_DEFAULTS,
            "aux_coef": 0.001,
            "attention_bias": True,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
        }
    ),
    constants=MappingProxyType({}),
    demands=tuple(d for d in _DEMANDS if d.key != "attention_bias"),
    has_windows=True,
    has_yarn=True,
    theta=150000.0,
)

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        d.model_type: d
        for d in (
            *(MIXTRAL, QWEN3_MOE, QWEN2_MOE, OLMOE, GLM4_MOE, PHIMOE, GPT_OSS),
            *(DEEPSEEK, DEEPSEEK_V2, DOTS1),
        )
    }
)

"""Published configurations give the presets of their names; what weft lacks is refused."""

import pytest

from weft.checkpoint.hf.config import read_config, write_config
from weft.config.presets import (
    deepseek_moe_16b,
    mixtral_8x7b_v0_1,
    qwen3_30b_a3b,
    tiny_deepseek_moe,
    tiny_mixtral,
    tiny_qwen3_moe,
)
from weft.config.releases import (
    glm_4_5,
    glm_4_5_air,
    gpt_oss_20b,
    olmoe_1b_7b_0924,
    phi_3_5_moe_instruct,
    qwen1_5_moe_a2_7b,
)
from weft.errors import ConfigError

# The configuration files of the releases, without lists of special tokens.
MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
QWEN3_30B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
DEEPSEEK_16B = {
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM"},
    "aux_loss_alpha": 0.001,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "max_position_embeddings": 4096,
    "model_type": "deepseek",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "vocab_size": 102400,
}
# The language model of DeepSeek-OCR: of the second version, but for its attention.
DEEPSEEK_OCR = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 6848,
    "kv_lora_rank": None,
    "max_position_embeddings": 8192,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 896,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 10,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 12,
    "num_key_value_heads": 10,
    "q_lora_rank": None,
    "qk_nope_head_dim": 0,
    "qk_rope_head_dim": 0,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "topk_group": 1,
    "topk_method": "greedy",
    "use_mla": False,
    "v_head_dim": 0,
    "vocab_size": 129280,
}
QWEN15_MOE = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "max_window_layers": 21,
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 1408,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 5632,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.39.0.dev0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
OLMOE_7B = {
    "architectures": ["OlmoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "eos_token_id": 50279,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 1024,
    "max_position_embeddings": 4096,
    "model_type": "olmoe",
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "output_router_logits": False,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 50304,
}
GLM_4_5_AIR = {
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "max_position_embeddings": 131072,
    "model_type": "glm4_moe",
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 46,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0",
    "use_cache": True,
    "use_qk_norm": False,
    "vocab_size": 151552,
}
GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": 201088,
}
_, PHI = write_config(phi_3_5_moe_instruct())
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def dots1_model():
    changes = {"score": "sigmoid", "qk_norm": True, "router_bias": True, "scaling": 2.5}
    return tiny_deepseek_moe().model_copy(update={**changes, "renormalise": True})


def refuse_report(message: str) -> None:
    raise AssertionError(message)


def read(config, **changes):
    return read_config({**config, **changes}, report=refuse_report)[1]


@pytest.mark.parametrize(
    ("config", "preset"),
    [
        (MIXTRAL_8X7B, mixtral_8x7b_v0_1),
        (QWEN3_30B, qwen3_30b_a3b),
        (DEEPSEEK_16B, deepseek_moe_16b),
        (QWEN15_MOE, qwen1_5_moe_a2_7b),
        (OLMOE_7B, olmoe_1b_7b_0924),
        (GLM_4_5_AIR, glm_4_5_air),
        (GPT_OSS_20B, gpt_oss_20b),
    ],
)
def test_a_release_is_the_preset_of_its_name(config, preset):
    assert read(config) == preset()


@pytest.mark.parametrize(
    ("config", "changes", "refused"),
    [
        (MIXTRAL_8X7B, {"model_type": "deepseek_v3"}, "latent attention.*expected.*mixtral"),
        (MIXTRAL_8X7B, {"model_type": "llama"}, 'model_type = "llama".*does not know'),
        (MIXTRAL_8X7B, {"model_type": None}, "model_type = null"),
        (MIXTRAL_8X7B, {"model_type": ["mixtral"]}, "model_type"),
        (MIXTRAL_8X7B, {"sliding_window": 4096}, "sliding_window = 4096.*whole document"),
        (MIXTRAL_8X7B, {"sliding_window": "long"}, 'sliding_window = "long"'),
        (MIXTRAL_8X7B, {"hidden_act": "gelu"}, 'hidden_act = "gelu".*SiLU.*"silu"'),
        (MIXTRAL_8X7B, {"router_jitter_noise": 0.1}, "router_jitter_noise = 0.1"),
        (MIXTRAL_8X7B, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (MIXTRAL_8X7B, {"rope_scaling": YARN}, "rope_scaling.*yarn.*not scaled"),
        (MIXTRAL_8X7B, {"rope_parameters": {**YARN, "rope_theta": 1e6}}, "rope_parameters"),
        (MIXTRAL_8X7B, {"rope_parameters": "default"}, "rope_parameters"),
        (MIXTRAL_8X7B, {"rope_theta": None}, "no rope_theta"),
        (MIXTRAL_8X7B, {"num_local_experts": None}, "no num_local_experts"),
        (MIXTRAL_8X7B, {"hidden_size": "wide"}, "head_dim"),
        (MIXTRAL_8X7B, {"num_hidden_layers": "32"}, "model.layers.*integer"),
        (QWEN3_30B, {"attention_bias": True}, "attention_bias = true.*no bias"),
        (QWEN3_30B, {"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        (QWEN3_30B, {"decoder_sparse_step": 0}, "decoder_sparse_step = 0"),
        (QWEN3_30B, {"decoder_sparse_step": 49}, "dense_layers.*leave at least one"),
        (GLM_4_5_AIR, {"n_group": 128}, "model.groups = 128.*two of the 128"),
        (GLM_4_5_AIR, {"n_group": 32, "topk_group": 1}, "model.top_groups = 1.*must be 2 to 32"),
        (GLM_4_5_AIR, {"partial_rotary_factor": 0.51}, "model.rotary_dim = 65.*even"),
        (GLM_4_5_AIR, {"rope_scaling": YARN}, "rope_scaling.*not scaled"),
        (GPT_OSS_20B, {"quantization_config": MXFP4}, "quantization_config.*dequantize=True"),
        (GPT_OSS_20B, {"layer_types": ["full_attention"]}, "layer_types.*for each layer"),
        (GPT_OSS_20B, {"layer_types": ["chunked_attention"] * 24}, "layer_types"),
        (GPT_OSS_20B, {"rope_scaling": {**YARN, "mscale": 2.0}}, "rope_parameters.mscale = 2.0"),
        (GPT_OSS_20B, {"rope_scaling": {"rope_type": "longrope"}}, "longrope.*packed documents"),
        (GPT_OSS_20B, {"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        (PHI, {"rope_scaling": {"type": "longrope"}}, "longrope.*packed documents"),
        (PHI, {"lm_head_bias": False}, "lm_head_bias = false.*head has a bias"),
        (PHI, {"num_experts_per_tok": 1}, "model.top_k = 1: must be 2"),
        (OLMOE_7B, {"clip_qkv": 8.0}, "clip_qkv = 8.0.*not clipped"),
        (OLMOE_7B, {"attention_bias": True}, "attention_bias = true.*no bias"),
        (QWEN3_30B, {"use_sliding_window": True, "sliding_window": 4096}, "sliding_window"),
        (QWEN3_30B, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (QWEN3_30B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        (DEEPSEEK_16B, {"scoring_func": "sigmoid"}, 'scoring_func = "sigmoid".*softmax'),
        (DEEPSEEK_16B, {"moe_layer_freq": 2}, "moe_layer_freq = 2"),
        (DEEPSEEK_16B, {"kv_lora_rank": 512}, "kv_lora_rank = 512.*latent"),
        (DEEPSEEK_16B, {"num_attention_heads": 15}, "15 heads do not divide"),
        (DEEPSEEK_16B, {"model_type": "deepseek_v2"}, "use_mla = null.*latent.*false"),
        (DEEPSEEK_OCR, {"use_mla": True}, "use_mla = true.*latent.*false"),
        (DEEPSEEK_OCR, {"kv_lora_rank": 512}, "kv_lora_rank = 512.*latent"),
        (DEEPSEEK_OCR, {"q_lora_rank": 1536}, "q_lora_rank = 1536.*latent"),
        (DEEPSEEK_OCR, {"topk_method": "group_limited_greedy"}, "topk_method.*among all"),
        (DEEPSEEK_OCR, {"norm_topk_prob": True}, "norm_topk_prob = true.*scaled"),
    ],
)
def test_what_weft_does_not_compute_is_refused_with_its_reason(config, changes, refused):
    with pytest.raises(ConfigError, match=refused):
        read(config, **changes)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"n_group": 8}, "n_group = 8.*groups"),
        ({"n_shared_experts": None}, "no n_shared_experts"),
        ({"sliding_window": 64, "max_window_layers": 1, "max_position_embeddings": 99}, "window"),
        ({"scoring_func": "softmax"}, "sigmoid"),
    ],
)
def test_dots_is_held_to_what_its_class_computes(changes, refused):
    _, config = write_config(dots1_model())
    with pytest.raises(ConfigError, match=refused):
        read(config, **changes)


def test_a_window_no_layer_looks_through_is_no_reason_to_refuse():
    _, config = write_config(dots1_model())
    window = {"sliding_window": 4096, "max_position_embeddings": 8192}
    assert read(config, **window, max_window_layers=62) == dots1_model()
    assert read(MIXTRAL_8X7B, sliding_window=32768) == mixtral_8x7b_v0_1()
    assert read(QWEN3_30B, sliding_window=4096) == qwen3_30b_a3b()


@pytest.mark.parametrize(
    "release", [glm_4_5, glm_4_5_air, gpt_oss_20b, olmoe_1b_7b_0924, phi_3_5_moe_instruct]
)
def test_a_release_survives_its_own_file(release):
    _, config = write_config(release())
    assert read(config) == release()


def test_windows_are_where_the_layers_say():
    full = read(GPT_OSS_20B, layer_types=["full_attention"] * 24)
    assert (full.window, full.windowed) == (0, ())
    assert read(GPT_OSS_20B, layer_types=None) == gpt_oss_20b()
    odd = read(GPT_OSS_20B, layer_types=["full_attention", "sliding_attention"] * 12)
    assert odd.windowed == tuple(range(1, 24, 2))
    _, again = write_config(odd)
    assert read(again) == odd


def test_every_layer_that_a_step_leaves_out_is_dense():
    model = read(QWEN15_MOE, decoder_sparse_step=3, mlp_only_layers=[2, 23])
    dense = [*range(model.dense_layers), *model.dense_at]
    assert dense == [i for i in range(24) if i % 3 != 2 or i in (2, 23)]
    assert model.dense_layers == 5
    assert model.dense_ffn_hidden == 5632


def test_absent_and_null_keys_mean_what_transformers_takes_them_for():
    assert read(MIXTRAL_8X7B, head_dim=None).head_dim == 4096 // 32
    assert read(MIXTRAL_8X7B, head_dim=64).head_dim == 64
    assert read(MIXTRAL_8X7B, num_key_value_heads=None).kv_heads == 32
    assert not read(QWEN3_30B, norm_topk_prob=None).renormalise
    assert read(DEEPSEEK_16B, n_shared_experts=None).shared_experts == 0


def test_the_words_of_transformers_5_are_read_too():
    new = {k: v for k, v in QWEN3_30B.items() if k not in {"num_experts", "rope_theta"}}
    new["num_local_experts"] = 128
    new["rope_parameters"] = {"rope_theta": 1000000.0, "rope_type": "default"}
    assert read(new) == qwen3_30b_a3b()


def test_the_second_deepseek_with_plain_attention_is_read():
    model = read(DEEPSEEK_OCR)
    assert (model.family, model.experts, model.shared_experts) == ("deepseek_moe", 64, 2)
    assert (model.renormalise, model.scaling, model.dense_layers) == (False, 1.0, 1)
    assert read(DEEPSEEK_OCR, routed_scaling_factor=16.0).scaling == 16.0


def test_a_single_choice_of_deepseek_keeps_its_score():
    assert read(DEEPSEEK_16B, norm_topk_prob=True).renormalise
    assert not read(DEEPSEEK_16B, norm_topk_prob=True, num_experts_per_tok=1).renormalise


def test_a_key_nobody_knows_is_reported():
    told = []
    read_config({**MIXTRAL_8X7B, "residual_scale": 0.5}, report=told.append)
    assert len(told) == 1
    assert "residual_scale" in told[0]


@pytest.mark.parametrize(
    ("model", "model_type"),
    [
        (tiny_mixtral(), "mixtral"),
        (tiny_qwen3_moe(), "qwen3_moe"),
        (
            tiny_qwen3_moe().model_copy(update={"dense_layers": 1, "dense_ffn_hidden": 64}),
            "qwen3_moe",
        ),
        (
            tiny_qwen3_moe().model_copy(
                update={"layers": 5, "dense_layers": 1, "dense_at": (2, 4), "dense_ffn_hidden": 64}
            ),
            "qwen3_moe",
        ),
        (
            qwen1_5_moe_a2_7b().model_copy(
                update={"attention_bias": False, "dense_at": (5,), "dense_ffn_hidden": 64}
            ),
            "qwen2_moe",
        ),
        (tiny_deepseek_moe(), "deepseek"),
        (tiny_deepseek_moe().model_copy(update={"shared_experts": 0}), "deepseek"),
        (tiny_deepseek_moe().model_copy(update={"scaling": 16.0}), "deepseek_v2"),
        (dots1_model(), "dots1"),
        (tiny_mixtral().model_copy(update={"tied": True, "aux_coef": 0.0}), "mixtral"),
    ],
)
def test_what_is_written_is_read_again_unchanged(model, model_type):
    dialect, config = write_config(model)
    assert dialect.model_type == config["model_type"] == model_type
    assert read(config) == model


@pytest.mark.parametrize(
    ("model", "lost"),
    [
        (tiny_mixtral().model_copy(update={"scaling": 2.0}), "scaling = 2.0"),
        (tiny_mixtral().model_copy(update={"score": "sigmoid"}), 'score = "sigmoid"'),
        (tiny_qwen3_moe().model_copy(update={"qk_norm": False}), "qk_norm = false"),
        (tiny_deepseek_moe().model_copy(update={"head_dim": 16}), "head_dim = 16"),
        (olmoe_1b_7b_0924().model_copy(update={"head_dim": 64}), "head_dim = 64"),
        (qwen1_5_moe_a2_7b().model_copy(update={"shared_experts": 2}), "shared_experts = 2"),
        (tiny_deepseek_moe().model_copy(update={"top_k": 1, "renormalise": True}), "renormalise"),
        (dots1_model().model_copy(update={"shared_experts": 0}), "no n_shared_experts"),
    ],
)
def test_what_no_dialect_can_say_is_not_written(model, lost):
    with pytest.raises(ConfigError, match=lost):
        write_config(model)

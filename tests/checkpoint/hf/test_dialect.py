"""A parameter has one place on the disk, and that place is filled once."""

import torch

from weft.checkpoint.hf.dialect import disk_name, entries
from weft.checkpoint.hf.dialects import DEEPSEEK, DOTS1, GPT_OSS
from weft.config.presets import tiny_deepseek_moe
from weft.config.releases import gpt_oss_20b


def test_the_experts_of_gpt_oss_fill_their_tensors_once():
    model = gpt_oss_20b().model_copy(update={"experts": 8, "hidden": 6, "ffn_hidden": 10})
    held = [e for e in entries(GPT_OSS, model) if e.packed is not None]
    filled = {e.disk: torch.zeros(e.size(8), dtype=torch.int64) for e in held}
    assert len(filled) == 4 * model.layers
    for entry in held:
        target = entry.of(filled[entry.disk][entry.expert])
        assert target.shape == entry.part.shape
        target += 1
    assert all((tensor == 1).all() for tensor in filled.values())
    stem = "model.layers.0.mlp.experts"
    assert filled[f"{stem}.gate_up_proj"].shape == (8, 6, 20)
    assert filled[f"{stem}.down_proj"].shape == (8, 10, 6)


def test_layers_and_experts_keep_their_numbers_apart():
    assert disk_name(DEEPSEEK, "layers.12.experts.3.up") == (
        "model.layers.12.mlp.experts.3.up_proj.weight"
    )
    assert disk_name(DEEPSEEK, "layers.12.router") == "model.layers.12.mlp.gate.weight"


def test_biases_of_routers_travel_with_the_layers_that_have_experts():
    changes = {"score": "sigmoid", "qk_norm": True, "router_bias": True}
    model = tiny_deepseek_moe().model_copy(update=changes)
    found = [e for e in entries(DOTS1, model) if e.part.name.endswith("router_bias")]
    layers = range(model.dense_layers, model.layers)
    stem = "model.layers.{}.mlp.gate.e_score_correction_bias"
    assert [e.disk for e in found] == [stem.format(i) for i in layers]
    assert {e.part.shape for e in found} == {(model.experts,)}

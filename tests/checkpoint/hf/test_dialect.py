"""Every name of weft has one name on the disk, in every dialect."""

import pytest
import torch

from weft.checkpoint.hf.config import write_config
from weft.checkpoint.hf.dialect import (
    DEEPSEEK,
    DIALECTS,
    DOTS1,
    GPT_OSS,
    MIXTRAL,
    disk_name,
    entries,
)
from weft.compose.recipe import shape
from weft.config.presets import (
    deepseek_moe_16b,
    mixtral_8x7b_v0_1,
    qwen3_30b_a3b,
    tiny_deepseek_moe,
)
from weft.config.releases import (
    glm_4_5_air,
    gpt_oss_20b,
    olmoe_1b_7b_0924,
    qwen1_5_moe_a2_7b,
)
from weft.model.count import total

RELEASES = (
    mixtral_8x7b_v0_1, qwen3_30b_a3b, deepseek_moe_16b, qwen1_5_moe_a2_7b, olmoe_1b_7b_0924,
    glm_4_5_air,
)  # fmt: skip


@pytest.mark.parametrize("release", RELEASES)
def test_no_two_parameters_of_a_release_share_a_name_and_all_are_counted(release):
    model = release()
    dialect, _ = write_config(model)
    held = list(entries(dialect, model))
    assert len({entry.disk for entry in held}) == len({e.part.name for e in held}) == len(held)
    counted = [e for e in held if not e.part.name.endswith("router_bias")]
    assert sum(entry.part.stop - entry.part.start for entry in counted) == total(shape(model)).all


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


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_a_table_gives_no_name_twice(dialect):
    assert len(set(dialect.tensors.values())) == len(dialect.tensors)  # or one place of it


def test_the_gate_of_mixtral_is_w1_its_up_w3_and_its_down_w2():
    # "gate" is what SiLU is applied to: w1 in the release
    names = [disk_name(MIXTRAL, f"layers.2.experts.11.{n}") for n in ("gate", "up", "down")]
    stem = "model.layers.2.block_sparse_moe.experts.11"
    assert names == [f"{stem}.{w}.weight" for w in ("w1", "w3", "w2")]


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

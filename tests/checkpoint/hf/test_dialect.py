"""Every name of weft has one name on the disk, in every dialect."""

import pytest

from weft.checkpoint.hf.config import write_config
from weft.checkpoint.hf.dialect import DEEPSEEK, DIALECTS, DOTS1, MIXTRAL, disk_name, entries
from weft.compose.recipe import shape
from weft.config.presets import (
    deepseek_moe_16b,
    mixtral_8x7b_v0_1,
    qwen3_30b_a3b,
    tiny_deepseek_moe,
)
from weft.model.count import total

RELEASES = (mixtral_8x7b_v0_1, qwen3_30b_a3b, deepseek_moe_16b)


@pytest.mark.parametrize("release", RELEASES)
def test_no_two_parameters_of_a_release_share_a_name_and_all_are_counted(release):
    model = release()
    dialect, _ = write_config(model)
    held = list(entries(dialect, model))
    assert len({entry.disk for entry in held}) == len({e.part.name for e in held}) == len(held)
    assert sum(entry.part.stop - entry.part.start for entry in held) == total(shape(model)).all


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_a_table_gives_no_name_twice(dialect):
    assert len(set(dialect.tensors.values())) == len(dialect.tensors)


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

"""Every name of weft has one name on the disk, in every dialect."""

import pytest

from weft.checkpoint.hf.config import write_config
from weft.checkpoint.hf.dialect import disk_name, entries
from weft.checkpoint.hf.dialects import DIALECTS, MIXTRAL
from weft.compose.recipe import shape
from weft.config.presets import deepseek_moe_16b, mixtral_8x7b_v0_1, qwen3_30b_a3b
from weft.config.releases import glm_4_5_air, olmoe_1b_7b_0924, qwen1_5_moe_a2_7b
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


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_a_table_gives_no_name_twice(dialect):
    assert len(set(dialect.tensors.values())) == len(dialect.tensors)  # or one place of it


def test_the_gate_of_mixtral_is_w1_its_up_w3_and_its_down_w2():
    # "gate" is what SiLU is applied to: w1 in the release
    names = [disk_name(MIXTRAL, f"layers.2.experts.11.{n}") for n in ("gate", "up", "down")]
    stem = "model.layers.2.block_sparse_moe.experts.11"
    assert names == [f"{stem}.{w}.weight" for w in ("w1", "w3", "w2")]

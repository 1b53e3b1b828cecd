"""A checkpoint is read when its tensors are those of its model, else the culprit is named."""

import json
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.checkpoint.hf.config import write_config
from weft.checkpoint.hf.dialect import entries
from weft.checkpoint.hf.read import CONFIG, INDEX, SINGLE, load, open_pretrained
from weft.checkpoint.hf.write import export
from weft.comm.mesh import Mesh
from weft.comm.transports.stacked import StackedWorld
from weft.compose.plan import Plan, Update
from weft.compose.recipe import arithmetic, shape
from weft.config.presets import tiny_deepseek_moe, tiny_mixtral
from weft.errors import CheckpointError
from weft.model.params import logical, parameters
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.runtime.stage import build

MODEL = tiny_mixtral().model_copy(update={"vocab": 40, "layers": 1})
BIASED = tiny_deepseek_moe().model_copy(
    update={"score": "sigmoid", "qk_norm": True, "router_bias": True, "vocab": 40, "layers": 2}
)


def drawn(part):
    """Values that belong to the name alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(part.name.encode()))
    return torch.randn(part.shape, generator=generator)


@pytest.fixture
def folder(tmp_path) -> Path:
    return export(tmp_path / "model", MODEL, drawn, dtype="float32")


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


def refused(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        open_pretrained(folder)


def stages(model, layout: Layout, precision: str):
    world = StackedWorld(Mesh(dp=layout.dp, sp=layout.sp, ep=layout.ep))
    for rank in range(layout.world):
        plan = Plan(
            shape=shape(model),
            arithmetic=arithmetic(model),
            layout=layout,
            rank=rank,
            sequence=8,
            micro_batch=1,
            micro_batches=layout.dp,
            precision=precision,
            order="serial",
            update=Update(beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0),
        )
        transport = world.transport(rank)
        device = torch.device("cpu")
        yield build(plan, bodies=reference_bodies(), transport=transport, device=device)


def test_every_parameter_has_the_values_of_its_name(folder):
    with open_pretrained(folder) as pretrained:
        assert pretrained.model == MODEL
        for parameter in parameters(shape(MODEL)):
            for part in parameter.parts:
                assert torch.equal(pretrained.read(part), drawn(part)), part.name


def test_many_files_read_as_one(folder, tmp_path):
    split = export(tmp_path / "split", MODEL, drawn, dtype="float32", shard_bytes=20_000)
    assert len(list(split.glob("*.safetensors"))) > 2
    with open_pretrained(folder) as one, open_pretrained(split) as many:
        for parameter in parameters(shape(MODEL)):
            for part in parameter.parts:
                assert torch.equal(one.read(part), many.read(part))


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda t: t.pop("model.layers.0.block_sparse_moe.experts.7.w2.weight"))
    refused(folder, r"no tensor .*experts\.7\.w2.*layers\.0\.experts\.7\.down")


def test_a_tensor_without_a_place_is_named(folder):
    bias = "model.layers.0.self_attn.q_proj.bias"
    rewrite(folder, lambda t: t.update({bias: torch.zeros(4)}))
    refused(folder, r"nothing .* called .*q_proj\.bias \[4\]")


def test_experts_fused_as_in_memory_are_refused(folder):
    def fuse(tensors):
        stem = "model.layers.0.block_sparse_moe.experts"
        down = [tensors.pop(f"{stem}.{e}.w2.weight") for e in range(MODEL.experts)]
        tensors["model.layers.0.mlp.experts.down_proj"] = torch.stack(down)

    rewrite(folder, fuse)
    refused(folder, "save_pretrained")


def test_a_head_beside_a_tied_embedding_is_refused(tmp_path):
    folder = export(tmp_path / "tied", MODEL.model_copy(update={"tied": True}), drawn)
    open_pretrained(folder).close()
    rewrite(folder, lambda t: t.update({"lm_head.weight": torch.zeros(40, 32)}))
    refused(folder, r"lm_head\.weight")


def test_a_wrong_shape_is_refused_even_where_the_count_is_right(folder):
    name = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    rewrite(folder, lambda t: t.update({name: t[name].T.contiguous()}))
    refused(folder, r"experts\.3\.w1.*has shape \[32, 48\].*expected \[48, 32\]")


def test_quantised_values_are_refused(folder):
    name = "model.layers.0.self_attn.q_proj.weight"
    rewrite(folder, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
    refused(folder, "F8_E4M3.*BF16")


def test_a_config_of_another_model_is_noticed(folder):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "num_local_experts": 7}))
    refused(folder, r"block_sparse_moe\.gate")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"model_type": '])
def test_a_config_that_is_none_is_refused(folder, content):
    (folder / CONFIG).write_bytes(content)
    refused(folder, "config.json cannot be read")


def test_a_folder_without_a_config_is_refused(tmp_path):
    refused(tmp_path, "config.json cannot be read")


def test_pickles_are_not_looked_at(folder):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    refused(folder, "pickles are never opened")


def test_a_file_cut_short_is_refused(folder):
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:-10])
    refused(folder, "cannot be read")


def test_two_sets_of_weights_are_one_too_many(folder):
    (folder / INDEX).write_text("{}")
    refused(folder, "both")


def with_index(folder: Path, change) -> None:
    index = dict.fromkeys(load_file(folder / SINGLE), SINGLE)
    (folder / SINGLE).rename(folder / "part.safetensors")
    index = dict.fromkeys(index, "part.safetensors")
    change(index)
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))


def test_an_index_and_its_files_must_agree(folder):
    with_index(folder, lambda index: index.pop("model.norm.weight"))
    refused(folder, r"disagree on model\.norm\.weight")


def test_an_index_reaches_no_file_outside_its_folder(folder):
    with_index(folder, lambda i: i.update({"model.norm.weight": "../part.safetensors"}))
    refused(folder, "a file beside it")


def test_an_index_without_a_map_is_refused(folder):
    with_index(folder, lambda index: index.clear())
    refused(folder, "no weight_map")


def test_a_name_the_model_does_not_have_cannot_be_read(folder):
    with open_pretrained(folder) as pretrained, pytest.raises(CheckpointError, match="has no"):
        pretrained.read(logical("layers.9.q", (1,)))


def test_master_weights_keep_what_the_compute_dtype_drops(folder):
    (made,) = stages(MODEL, Layout(), "bfloat16")
    with open_pretrained(folder) as pretrained:
        load(made.state, pretrained)
    for kind, piece, values in made.state.shards():
        if kind == "master":
            wanted = drawn(piece).view(-1)[piece.start : piece.stop]
            assert values.dtype == torch.float32
            assert torch.equal(values, wanted), piece.name
    embed = made.state.statics["param:embed"]
    assert torch.equal(embed, drawn(parameters(shape(MODEL))[0].parts[0]).bfloat16())


def test_each_rank_gets_its_own_experts_and_its_own_share_of_the_masters(folder):
    with open_pretrained(folder) as pretrained:
        for made in stages(MODEL, Layout(sp=2, ep=2), "bfloat16"):
            load(made.state, pretrained)
            for parameter in made.step.parameters:
                flat = made.state.statics[f"param:{parameter.name}"].view(-1)
                for part in parameter.parts:
                    wanted = drawn(part).bfloat16().view(-1)
                    assert torch.equal(flat[part.start : part.stop], wanted), part.name
            for kind, piece, values in made.state.shards():
                if kind == "master":
                    assert torch.equal(values, drawn(piece).view(-1)[piece.start : piece.stop])


def test_biases_of_routers_are_loaded_and_those_of_other_layers_cleared(tmp_path):
    folder = export(tmp_path / "biased", BIASED, drawn, dtype="bfloat16")
    (made,) = stages(BIASED, Layout(), "float32")
    for layer in range(BIASED.layers):
        made.state.statics[f"state:layers.{layer}.router_bias"].fill_(7.0)
    with open_pretrained(folder) as pretrained:
        load(made.state, pretrained)
    dialect, _ = write_config(BIASED)
    *_, bias = entries(dialect, BIASED)
    assert not made.state.statics["state:layers.0.router_bias"].any()  # the dense layer
    assert torch.equal(made.state.statics[f"state:{bias.part.name}"], drawn(bias.part))


@pytest.mark.parametrize("changes", [{"norm_eps": 1e-6}, {"rope_theta": 5e5}, {"ffn_hidden": 64}])
def test_a_recipe_of_another_model_is_told_what_differs(folder, changes):
    (made,) = stages(MODEL.model_copy(update=changes), Layout(), "float32")
    (field,) = changes
    with open_pretrained(folder) as pretrained, pytest.raises(CheckpointError, match=field):
        load(made.state, pretrained)


def test_how_a_run_starts_and_balances_is_free_to_differ(folder):
    changes = {"init_std": 0.1, "aux_coef": 0.0, "z_coef": 0.1}
    (made,) = stages(MODEL.model_copy(update=changes), Layout(), "float32")
    with open_pretrained(folder) as pretrained:
        load(made.state, pretrained)

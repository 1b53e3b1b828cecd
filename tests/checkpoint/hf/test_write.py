"""What is written is whole, bounded file by file, and says all that a reader needs."""

import json
import zlib

import pytest
import torch
from safetensors.torch import load_file

from weft.checkpoint.hf.config import write_config
from weft.checkpoint.hf.dialect import entries
from weft.checkpoint.hf.read import CONFIG, INDEX, SINGLE, open_pretrained
from weft.checkpoint.hf.write import export, export_checkpoint
from weft.checkpoint.save import Piece, Progress, alone, save
from weft.config.presets import tiny_deepseek_moe, tiny_mixtral
from weft.errors import CheckpointError, ConfigError

MODEL = tiny_mixtral().model_copy(update={"vocab": 40, "layers": 1})
BIASED = tiny_deepseek_moe().model_copy(
    update={"score": "sigmoid", "qk_norm": True, "router_bias": True, "vocab": 40, "layers": 2}
)


def drawn(part):
    generator = torch.Generator().manual_seed(zlib.crc32(part.name.encode()))
    return torch.randn(part.shape, generator=generator)


def parts_of(model):
    dialect, _ = write_config(model)
    return [entry.part for entry in entries(dialect, model)]


def test_files_stay_within_their_bound_and_the_index_knows_each_tensor(tmp_path):
    bound = 20_000
    folder = export(tmp_path / "m", MODEL, drawn, dtype="float32", shard_bytes=bound)
    index = json.loads((folder / INDEX).read_text())
    files = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    sizes = {name: sum(t.nbytes for t in held.values()) for name, held in files.items()}
    assert len(files) > 2
    assert max(sizes.values()) <= bound
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert index["weight_map"] == {t: f for f, held in files.items() for t in held}


def test_a_tensor_above_the_bound_has_a_file_of_its_own(tmp_path):
    folder = export(tmp_path / "m", MODEL, drawn, dtype="float32", shard_bytes=1)
    assert len(list(folder.glob("*.safetensors"))) == len(parts_of(MODEL))


def test_one_file_needs_no_index(tmp_path):
    folder = export(tmp_path / "m", MODEL, drawn)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, SINGLE]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_values_are_rounded_once_and_biases_of_routers_stay_wide(tmp_path, dtype):
    folder = export(tmp_path / "m", BIASED, drawn, dtype=dtype)
    asked = getattr(torch, dtype)
    with open_pretrained(folder) as pretrained:
        for part in parts_of(BIASED):
            steers = part.name.endswith("router_bias")
            wanted = torch.promote_types(asked, torch.float32) if steers else asked
            assert pretrained.read(part).dtype == wanted
            assert torch.equal(pretrained.read(part), drawn(part).to(wanted))


def test_the_config_says_what_is_asked_and_no_token_has_a_meaning_by_default(tmp_path):
    also = {"max_position_embeddings": 128, "eos_token_id": 39}
    folder = export(tmp_path / "m", MODEL, drawn, also=also)
    config = json.loads((folder / CONFIG).read_text())
    assert config["max_position_embeddings"] == 128
    assert config["eos_token_id"] == 39
    assert config["bos_token_id"] is None
    assert config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("also", [{"hidden_size": 64}, {"torch_dtype": "float32"}])
def test_the_caller_cannot_contradict_the_model(tmp_path, also):
    (key,) = also
    with pytest.raises(ConfigError, match=key):
        export(tmp_path / "m", MODEL, drawn, also=also)
    assert not (tmp_path / "m").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(CheckpointError, match="exists"):
        export(tmp_path / "m", MODEL, drawn)


def test_what_a_crash_left_is_replaced(tmp_path):
    (tmp_path / "m.partial").mkdir()
    (tmp_path / "m.partial" / "model-00001-of-00009.safetensors").write_bytes(b"half")
    export(tmp_path / "m", MODEL, drawn)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (1e6, "float16")])
def test_a_value_that_is_no_number_is_not_written(tmp_path, value, dtype):
    def read(part):
        return drawn(part).fill_(value) if part.name == "layers.0.experts.5.up" else drawn(part)

    with pytest.raises(CheckpointError, match=r"experts\.5\.up is not finite"):
        export(tmp_path / "m", MODEL, read, dtype=dtype)
    assert not (tmp_path / "m").exists()


def test_a_value_of_another_shape_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"embed was given in shape \[3\]"):
        export(tmp_path / "m", MODEL, lambda _: torch.zeros(3))


@pytest.mark.parametrize("model", [MODEL, BIASED], ids=["mixtral", "dots1"])
def test_a_checkpoint_of_weft_is_exported_from_its_master_weights(tmp_path, model):
    pieces = [
        Piece(
            kind="state" if part.name.endswith("router_bias") else "master",
            name=part.name,
            shape=part.shape,
            start=0,
            stop=drawn(part).numel(),
            tensor=drawn(part).view(-1),
        )
        for part in parts_of(model)
    ]
    (tmp_path / "own.json").write_text('{"version": "1.0"}')
    (tmp_path / "first").mkdir()
    first = {"eos_token_id": 5, "torch_dtype": "float64", "vocab_size": 1}
    (tmp_path / "first" / CONFIG).write_text(json.dumps(first))
    config = {
        "model": model.model_dump(mode="json"),
        "data": {"sequence": 64, "tokenizer": str(tmp_path / "own.json")},
        "train": {"init_from": str(tmp_path / "first")},
    }
    progress = Progress(step=3, config=config, data={})
    source = save(tmp_path / "run", pieces, progress=progress, writer=alone())
    folder = export_checkpoint(source, tmp_path / "m", dtype="float32")
    with open_pretrained(folder) as pretrained:
        assert pretrained.model == model
        assert pretrained.config["max_position_embeddings"] == 64
        assert pretrained.config["eos_token_id"] == 5
        assert pretrained.config["torch_dtype"] == "float32"
        assert (folder / "tokenizer.json").read_text() == '{"version": "1.0"}'
        for part in parts_of(model):
            assert torch.equal(pretrained.read(part), drawn(part))

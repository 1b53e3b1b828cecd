"""Whatever cut a tensor, it reads back bit for bit; the newest good checkpoint is found."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoint.conftest import (
    cut,
    equal,
    make_tensors,
    progress,
    read_all,
    save_alone,
    save_together,
)

from weft.checkpoint.digest import fingerprint_expert
from weft.checkpoint.load import Checkpoint, find_latest
from weft.checkpoint.save import alone, save
from weft.errors import CheckpointError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("ranks", "length"), [(1, 99), (2, 12), (3, 5), (4, 1)])
def test_any_cutting_reads_back_bit_for_bit(tmp_path, dtype, ranks, length) -> None:
    tensors = make_tensors(dtype=dtype)
    outcome = save_together(tmp_path, cut(tensors, ranks, lambda n: range(0, n, length)), 5)
    assert outcome == [tmp_path / "step-00000005"] * ranks
    assert equal(read_all(outcome[0]), tensors)
    with Checkpoint.open_verified(outcome[0]) as checkpoint:
        for (kind, name), tensor in tensors.items():
            for other in (1, 4, 7):
                for start in range(0, tensor.numel(), other):
                    stop = min(start + other, tensor.numel())
                    part = checkpoint.read(kind, name, start, stop)
                    assert torch.equal(part, tensor.reshape(-1)[start:stop])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 51), max_size=6), st.integers(0, 52), st.integers(0, 52))
def test_any_range_is_read_from_any_cutting(tmp_path_factory, cuts, first, last) -> None:
    start, stop = sorted((first, last))
    tensors = make_tensors()
    folder = save(
        tmp_path_factory.mktemp("run"),
        cut(tensors, 1, lambda _: cuts)[0],
        progress=progress(1),
        writer=alone(),
    )
    with Checkpoint.open(folder) as checkpoint:
        part = checkpoint.read("master", "embed", start, stop)
    assert torch.equal(part, tensors["master", "embed"].reshape(-1)[start:stop])


def test_every_bit_pattern_survives(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 5e-324, 2**-1022], dtype=torch.float64)
    with Checkpoint.open(save_alone(tmp_path, {("state", "odd"): odd}, 1)) as checkpoint:
        found = checkpoint.read("state", "odd")
    assert found.view(torch.int64).tolist() == odd.view(torch.int64).tolist()


def test_manifest_holds_config_position_and_names(tmp_path: Path) -> None:
    with Checkpoint.open(save_alone(tmp_path, make_tensors(), 42)) as checkpoint:
        assert checkpoint.manifest.step == 42
        assert checkpoint.manifest.config == {"optim": {"lr": 3e-4}}
        assert checkpoint.manifest.data == {"step": 42}
        assert checkpoint.names("state") == ["layers.0.router_bias"]
        assert checkpoint.shape("mean", "embed") == (13, 4)


def test_fingerprints_do_not_depend_on_the_layout_and_see_a_swap(tmp_path: Path) -> None:
    tensors = make_tensors()
    swapped = dict(tensors)
    names = [f"layers.0.experts.{e}.gate" for e in range(2)]
    for name, other in zip(names, reversed(names), strict=True):
        swapped["master", name] = tensors["master", other]
    prints = []
    for run, (content, length) in enumerate([(tensors, 99), (tensors, 5), (swapped, 99)]):
        dealt = cut(content, 2, lambda n, length=length: range(0, n, length))
        folder = save_together(tmp_path / str(run), dealt, 1)[0]
        with Checkpoint.open(folder) as checkpoint:
            prints.append(checkpoint.manifest.fingerprints)
    assert prints[0] == prints[1]
    expert = "layers.0.experts.1"
    assert prints[0][expert] != prints[2][expert]
    assert prints[0]["layers.1.experts.0"] == prints[2]["layers.1.experts.0"]
    content = {part: tensors["master", f"{expert}.{part}"] for part in ("gate", "down")}
    assert prints[0][expert] == fingerprint_expert(content)


def test_a_missing_tensor_or_range_is_named(tmp_path: Path) -> None:
    with Checkpoint.open(save_alone(tmp_path, make_tensors(), 1)) as checkpoint:
        with pytest.raises(CheckpointError, match=r"no master head; expected .*check"):
            checkpoint.read("master", "head")
        with pytest.raises(CheckpointError, match="has 4 elements"):
            checkpoint.read("master", "norm", 2, 5)


def test_the_newest_good_one_is_found_and_the_others_are_reported(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_alone(tmp_path, make_tensors(step), step, keep=4)
    (tmp_path / "step-00000004" / "manifest.json").unlink()
    shard = tmp_path / "step-00000003" / "rank-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    said: list[str] = []
    assert find_latest(tmp_path, report=said.append) == tmp_path / "step-00000002"
    assert ["step-00000004" in said[0], "step-00000003" in said[1]] == [True, True]
    with pytest.warns(UserWarning, match="damaged"):
        find_latest(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_no_checkpoint_is_none_and_no_good_one_is_an_error(tmp_path: Path) -> None:
    assert find_latest(tmp_path / "nowhere") is None
    (tmp_path / "step-00000001.partial").mkdir()
    assert find_latest(tmp_path) is None
    (tmp_path / "step-00000001").mkdir()
    with pytest.raises(CheckpointError, match="none of the 1"):
        find_latest(tmp_path, report=lambda _: None)


def test_a_shard_that_rots_between_verifying_and_reading_is_caught(tmp_path: Path) -> None:
    folder = save_alone(tmp_path, make_tensors(), 1)
    with Checkpoint.open(folder) as checkpoint:
        shard = folder / "rank-00000.safetensors"
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1  # the last byte of the last tensor in the file
        shard.write_bytes(content)
        kinds = ("master", "mean", "square", "state")
        names = [(kind, name) for kind in kinds for name in checkpoint.names(kind)]
        with pytest.raises(CheckpointError, match="changed"):
            [checkpoint.read(kind, name) for kind, name in names]

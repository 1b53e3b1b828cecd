"""No damage reaches a weight: every flip, cut, swap and edit is found before anything is used."""

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.checkpoint.conftest import cut, equal, make_tensors, read_all, save_alone, save_together

from weft.checkpoint import load, verify
from weft.checkpoint.digest import crc32_of_file
from weft.checkpoint.format import sign
from weft.errors import CheckpointError

FLIPS, CUTS, EDITS = 90, 20, 30


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good checkpoint of three ranks, copied before it is harmed."""
    run_dir = tmp_path_factory.mktemp("good")
    outcome = save_together(run_dir, cut(make_tensors(), 3, lambda n: range(0, n, 9)), 1)
    assert outcome == [run_dir / "step-00000001"] * 3
    return run_dir / "step-00000001"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / saved.name))


def is_refused(folder: Path) -> bool:
    """Whether opening says so; any other error than ours fails the test."""
    try:
        read_all(folder)
    except CheckpointError:
        return True
    return False


def count_refused(
    saved: Path, folder: Path, trials: int, harm: Callable[[random.Random], None]
) -> int:
    """How many of so many harmed copies are refused."""
    refused = 0
    for seed in range(trials):
        harm(random.Random(seed))
        refused += is_refused(folder)
        for path in saved.iterdir():
            shutil.copy(path, folder / path.name)
    assert not is_refused(folder)
    return refused


def flip_one_bit(folder: Path, draw: random.Random) -> None:
    path = draw.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def test_every_flipped_bit_is_found(saved: Path, folder: Path) -> None:
    assert count_refused(saved, folder, FLIPS, lambda draw: flip_one_bit(folder, draw)) == FLIPS


def test_control_without_the_digests_flips_get_through(saved, folder, monkeypatch) -> None:
    monkeypatch.setattr(verify, "check_digests", lambda *_: None)
    monkeypatch.setattr(load, "crc32_of", lambda _: 0)
    monkeypatch.setattr(load.Checkpoint, "_read_piece", unchecked)
    wrong = 0
    for seed in range(30):
        flip_one_bit(folder, random.Random(seed))
        wrong += not is_refused(folder) and not equal(read_all(folder), make_tensors())
        for path in saved.iterdir():
            shutil.copy(path, folder / path.name)
    assert wrong > 0


def unchecked(self, piece, first, last):
    with load.safe_open(self.folder / piece.file, framework="pt") as shard:
        return shard.get_slice(piece.key)[first - piece.start : last - piece.start]


def test_every_truncation_and_extension_is_found(saved: Path, folder: Path) -> None:
    def harm(draw: random.Random) -> None:
        path = draw.choice(sorted(folder.iterdir()))
        content = path.read_bytes()
        length = draw.choice([0, 1, 8, len(content) // 2, len(content) - 1])
        path.write_bytes(draw.choice([content[:length], content + b"\0", content + content]))

    assert count_refused(saved, folder, CUTS, harm) == CUTS


def test_every_edited_number_in_the_manifest_is_found(saved: Path, folder: Path) -> None:
    def harm(draw: random.Random) -> None:
        path = folder / "manifest.json"
        content = json.loads(path.read_bytes())
        part = draw.choice([content, *content["entries"], *content["files"]])
        key = draw.choice([key for key, value in part.items() if isinstance(value, int | str)])
        part[key] = part[key] + 1 if isinstance(part[key], int) else part[key] + "0"
        path.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")

    assert count_refused(saved, folder, EDITS, harm) == EDITS


def test_every_missing_file_is_found(saved: Path, folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        path.unlink()
        assert is_refused(folder)
        shutil.copy(saved / path.name, path)


def test_swapped_shards_are_found(folder: Path) -> None:
    first, second = folder / "rank-00000.safetensors", folder / "rank-00001.safetensors"
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    assert is_refused(folder)


def test_a_shard_of_another_checkpoint_is_found(folder: Path, tmp_path: Path) -> None:
    dealt = cut(make_tensors(seed=9), 3, lambda n: range(0, n, 9))
    other = save_together(tmp_path / "other", dealt, 1)[0]
    shutil.copy(other / "rank-00002.safetensors", folder)
    assert is_refused(folder)


def test_a_folder_under_the_name_of_another_step_is_found(folder: Path) -> None:
    moved = folder.rename(folder.with_name("step-00000002"))
    assert is_refused(moved)
    assert not is_refused(moved.rename(folder.with_name("best")))


def test_a_link_in_place_of_a_shard_is_refused(folder: Path, saved: Path) -> None:
    shard = folder / "rank-00000.safetensors"
    shard.unlink()
    shard.symlink_to(saved / shard.name)
    assert is_refused(folder)


def resign(folder: Path) -> None:
    """What a forger does: sizes, digests and the manifest's own digest are made right again."""
    content = json.loads((folder / "manifest.json").read_bytes())
    del content["digest"]
    for file in content["files"]:
        path = folder / file["file"]
        file["num_bytes"], file["crc32"] = path.stat().st_size, crc32_of_file(path)
    (folder / "manifest.json").write_bytes(sign(content))


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("forged", [False, True])
@pytest.mark.parametrize("file", ["rank-00000.safetensors", "manifest.json"])
def test_hostile_pickle_runs_nothing(folder: Path, file: str, forged: bool, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    harmful = pickle.dumps(Hostile(f"touch {canary}"))
    if file.endswith("safetensors"):
        harmful = harmful.ljust((folder / file).stat().st_size, b"\0")
    (folder / file).write_bytes(harmful)
    if forged and file != "manifest.json":
        resign(folder)
    assert is_refused(folder)
    assert not canary.exists()
    pickle.loads(harmful)
    assert canary.exists()  # the control: it would have


def test_a_forged_shard_with_other_pieces_is_refused(folder: Path, tmp_path: Path) -> None:
    other = save_alone(tmp_path / "other", make_tensors(), 1)
    shutil.copy(other / "rank-00000.safetensors", folder)
    resign(folder)
    with pytest.raises(CheckpointError, match="cannot hold|does not hold"):
        verify.verify(folder)


def test_the_reasons_are_told_apart(folder: Path) -> None:
    shard = folder / "rank-00001.safetensors"
    content = shard.read_bytes()
    for harmed, reason in [(content[:-1], "bytes, not"), (content[:-1] + b"\7", "has changed")]:
        shard.write_bytes(harmed)
        with pytest.raises(CheckpointError, match=rf"{shard.name} .*{reason}.*resume from"):
            verify.verify(folder)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} is missing"):
        verify.verify(folder)

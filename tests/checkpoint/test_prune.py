"""What is deleted is older than the newest whole ones; what is damaged stays."""

from pathlib import Path

import pytest
from tests.checkpoint.conftest import equal, make_tensors, read_all, save_alone

from weft.checkpoint.load import find_latest
from weft.checkpoint.prune import list_checkpoints, prune, sweep
from weft.checkpoint.save import no_fail
from weft.errors import CheckpointError


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.iterdir())


@pytest.mark.parametrize("keep", [2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in range(10, 60, 10):
        save_alone(tmp_path, make_tensors(), step, keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in range(10, 60, 10)][-keep:]


def test_steps_that_are_kept_for_good_do_not_count(tmp_path: Path) -> None:
    for step in range(10, 90, 10):
        save_alone(tmp_path, make_tensors(), step, keep_every=30)
    kept = (30, 60, 70, 80)
    assert names(tmp_path) == [f"step-{step:08d}" for step in kept]


@pytest.mark.parametrize("keep", [1, 0, -1])
def test_fewer_than_two_are_refused_before_anything_is_written(tmp_path: Path, keep: int) -> None:
    with pytest.raises(CheckpointError, match=r"keep = .*at least 2"):
        save_alone(tmp_path, make_tensors(), 1, keep=keep)
    assert names(tmp_path) == []


def test_a_damaged_one_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    for step in (1, 2):
        save_alone(tmp_path, make_tensors(), step)
    (tmp_path / "step-00000002" / "manifest.json").write_bytes(b"{")
    save_alone(tmp_path, make_tensors(), 3)
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    save_alone(tmp_path, make_tensors(), 4)
    assert names(tmp_path) == ["step-00000002", "step-00000003", "step-00000004"]


def test_after_a_fall_back_the_newer_ones_do_not_push_out_the_good_one(tmp_path: Path) -> None:
    old, new = make_tensors(1), make_tensors(2)
    for step in (100, 200, 300):
        save_alone(tmp_path, old, step, keep=3)
    for step in (200, 300):
        shard = tmp_path / f"step-{step:08d}" / "rank-00000.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")  # its size is as it was
    said: list[str] = []
    assert find_latest(tmp_path, report=said.append) == tmp_path / "step-00000100"
    save_alone(tmp_path, new, 150)
    assert (tmp_path / "step-00000100").is_dir()
    assert equal(read_all(find_latest(tmp_path, report=said.append)), new)


def test_nothing_is_deleted_when_the_one_just_written_is_not_whole(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_alone(tmp_path, make_tensors(), step, keep=3)
    written = tmp_path / "step-00000003"
    (written / "rank-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        prune(tmp_path, keep=2, written=written, fail_point=no_fail)
    assert len(names(tmp_path)) == 3


def test_stale_remains_go_and_other_files_stay(tmp_path: Path) -> None:
    stale = ("step-00000001.partial", "step-00000001.pruned", "step-00000001.replaced-1.pruned")
    other = ("step-00000009.partial", "step-x.partial", "report.txt", "step-notes.pruned")
    for name in (*stale, *other):
        (tmp_path / name).mkdir()
    save_alone(tmp_path, make_tensors(), 2)
    assert names(tmp_path) == sorted([*other, "step-00000002"])


def test_a_run_directory_that_is_not_there_has_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_what_crashes_left_is_swept_away_and_checkpoints_stay(tmp_path: Path) -> None:
    save_alone(tmp_path, make_tensors(), 1)
    stay = ("step-00000002.replaced-1", "step-x.pruned", "logs")
    for name in (*stay, "step-00000003.partial", "step-00000000.pruned"):
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == sorted(["step-00000001", *stay])

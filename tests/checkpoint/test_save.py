"""A checkpoint is absent or whole at every moment; an error on one rank is one on all."""

import errno
import os
from pathlib import Path

import pytest
import torch
from tests.checkpoint.conftest import (
    cut,
    equal,
    make_tensors,
    progress,
    read_all,
    save_alone,
    save_together,
    whole,
)

from weft.checkpoint import durable
from weft.checkpoint.load import find_latest
from weft.checkpoint.save import Piece, alone, save
from weft.errors import CheckpointError

FAIL_POINTS = (
    "after_shard_write",
    "before_manifest",
    "after_manifest",
    "before_rename",
    "in_prune",
)


def name_of(descriptor: int) -> str:
    return Path(f"/proc/self/fd/{descriptor}").resolve().name


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("point", FAIL_POINTS)
def test_a_crash_leaves_an_absent_or_a_whole_checkpoint(tmp_path: Path, point: str) -> None:
    old, new = make_tensors(1), make_tensors(2)
    for step in (1, 2):
        save_alone(tmp_path, old, step)
    passed = []

    def fail(here: str) -> None:
        passed.append(here)
        if here == point:
            raise Killed

    with pytest.raises(Killed):
        save_alone(tmp_path, new, 3, fail_point=fail)
    assert passed[-1] == point
    found = find_latest(tmp_path)
    is_new = point == "in_prune"
    assert found == tmp_path / ("step-00000003" if is_new else "step-00000002")
    assert equal(read_all(found), new if is_new else old)
    # The next run overwrites the remains, and tidies up after the crash.
    assert equal(read_all(save_alone(tmp_path, new, 3)), new)
    save_alone(tmp_path, new, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("point", [None, "before_rename"])
def test_the_same_step_saved_again_is_set_aside_until_the_new_one_is_there(tmp_path, point) -> None:
    old, new = make_tensors(1), make_tensors(2)
    folder = save_alone(tmp_path, old, 1)

    def fail(here: str) -> None:
        if here == point:
            raise Killed

    if point:
        with pytest.raises(Killed):
            save_alone(tmp_path, new, 1, fail_point=fail)
        assert equal(read_all(find_latest(tmp_path)), old)
    save_alone(tmp_path, new, 1)
    assert equal(read_all(find_latest(tmp_path)), new)
    assert list(tmp_path.iterdir()) == [folder]


def test_files_are_on_the_disk_before_the_name_that_makes_them_count(tmp_path, monkeypatch) -> None:
    events = []
    sync, rename = durable._sync, Path.rename
    monkeypatch.setattr(durable, "_sync", lambda p, f: (events.append(p.name), sync(p, f)))
    monkeypatch.setattr(os, "fsync", lambda fd: events.append(name_of(fd)))
    monkeypatch.setattr(Path, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    save_alone(tmp_path, make_tensors(), 1)
    first = {name: events.index(name) for name in reversed(events)}
    ordered = ["rank-00000.safetensors", "manifest.json", "step-00000001.partial", "rename"]
    assert [first[name] for name in ordered] == sorted(first[name] for name in ordered)
    assert events.index(tmp_path.name) > first["rename"]


def test_all_ranks_fail_when_one_does_and_the_old_checkpoint_stays(tmp_path, monkeypatch) -> None:
    tensors = make_tensors()
    dealt = cut(tensors, 3, lambda n: range(0, n, 7))
    assert save_together(tmp_path, dealt, 1) == [tmp_path / "step-00000001"] * 3
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if "rank-00001" in name_of(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    outcome = save_together(tmp_path, dealt, 2)
    assert all(isinstance(error, CheckpointError) for error in outcome), outcome
    assert "No space left" in str(outcome[1])
    assert f"{sum(p.tensor.nbytes for p in dealt[1])} bytes" in str(outcome[1])
    assert "free" in str(outcome[1])
    assert "rank 1 did not finish" in str(outcome[0])
    monkeypatch.undo()
    assert equal(read_all(find_latest(tmp_path)), tensors)
    assert save_together(tmp_path, dealt, 2) == [tmp_path / "step-00000002"] * 3


def test_a_run_directory_that_cannot_be_made_is_named_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = save_together(tmp_path / "file" / "run", cut(make_tensors(), 2, lambda _: ()), 1)
    assert all(isinstance(error, CheckpointError) for error in outcome), outcome
    assert "file/run" in str(outcome[0])


def test_pieces_that_do_not_cover_a_tensor_are_refused_on_all_ranks(tmp_path: Path) -> None:
    dealt = cut(make_tensors(), 2, lambda n: [n // 2])
    dealt[1].pop()
    outcome = save_together(tmp_path, dealt, 1)
    assert all(isinstance(error, CheckpointError) for error in outcome), outcome
    assert "elements" in str(outcome[0])
    assert find_latest(tmp_path) is None


def piece(tensor: torch.Tensor, stop: int = 4) -> Piece:
    return Piece(kind="master", name="norm", shape=(4,), start=0, stop=stop, tensor=tensor)


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(torch.zeros(4)), piece(torch.zeros(4))],
        [piece(torch.zeros(3))],
        [piece(torch.zeros(2, 2))],
        [piece(torch.zeros(4, dtype=torch.complex64))],
    ],
)
def test_a_piece_that_is_not_what_it_says_is_refused(tmp_path: Path, pieces: list[Piece]) -> None:
    with pytest.raises(CheckpointError, match="expected"):
        save(tmp_path, pieces, progress=progress(1), writer=alone())


def test_pieces_without_elements_and_ranks_without_pieces_are_fine(tmp_path: Path) -> None:
    tensors = make_tensors()
    empty = piece(torch.zeros(0), stop=0)
    outcome = save_together(tmp_path, [[*whole(tensors), empty], [], [empty]], 1)
    assert outcome == [tmp_path / "step-00000001"] * 3
    assert equal(read_all(outcome[0]), tensors)


def test_a_config_that_is_not_json_is_refused(tmp_path: Path) -> None:
    odd = progress(1)
    odd = type(odd)(step=1, config={"lr": float("inf")}, data={})
    with pytest.raises(CheckpointError, match="finite"):
        save(tmp_path, whole(make_tensors()), progress=odd, writer=alone())
    odd = type(odd)(step=1, config={"lr": object()}, data={})
    with pytest.raises(CheckpointError, match="JSON"):
        save(tmp_path, whole(make_tensors()), progress=odd, writer=alone())


def test_trouble_after_the_rename_is_reported_and_the_checkpoint_counts(tmp_path) -> None:
    for step in (1, 2):
        save_alone(tmp_path, make_tensors(), step)

    def fail(here: str) -> None:
        if here == "in_prune":
            raise OSError(errno.EIO, "Input/output error")

    said: list[str] = []
    folder = save_alone(tmp_path, make_tensors(), 3, fail_point=fail, report=said.append)
    assert folder == find_latest(tmp_path)
    assert len(said) == 1
    assert "is whole, but" in said[0]

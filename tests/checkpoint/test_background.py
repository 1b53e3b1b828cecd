"""A write beside the training has the values of its step, and its end is told once."""

import threading
from pathlib import Path

import pytest
import torch
from tests.checkpoint.conftest import make_tensors, progress, save_alone, whole

from weft.checkpoint.background import Background, Snapshot
from weft.checkpoint.save import alone, save
from weft.errors import CheckpointError


def test_a_snapshot_has_the_values_of_its_time_in_the_same_buffers() -> None:
    tensors = make_tensors(1)
    pieces = whole(tensors)
    snapshot = Snapshot()
    first = snapshot.begin(pieces)()
    before = [piece.tensor.clone() for piece in first]
    snapshot.hold()
    for piece in pieces:
        piece.tensor.add_(1)
    assert all(torch.equal(a.tensor, b) for a, b in zip(first, before, strict=True))
    second = snapshot.begin(pieces)()
    assert [a.tensor.data_ptr() for a in first] == [b.tensor.data_ptr() for b in second]
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(second, pieces, strict=True))


def test_who_changes_the_state_is_held_until_the_copy_is_made() -> None:
    snapshot, changed = Snapshot(), threading.Event()
    snapshot.hold()  # nothing is being copied
    finish = snapshot.begin(whole(make_tensors(1)))

    def change() -> None:
        snapshot.hold()
        changed.set()

    thread = threading.Thread(target=change)
    thread.start()
    assert not changed.wait(0.05)
    finish()
    thread.join(20)
    assert changed.is_set()
    assert snapshot.held_seconds >= 0.05
    snapshot.hold()


def test_a_copy_that_fails_holds_nobody() -> None:
    snapshot, pieces = Snapshot(), whole(make_tensors(1))
    snapshot.begin(pieces)()
    pieces[0].tensor.resize_(3)
    finish = snapshot.begin(pieces)
    with pytest.raises(RuntimeError):
        finish()
    snapshot.hold()


def test_files_written_beside_the_training_are_those_written_in_its_way(tmp_path: Path) -> None:
    expected = save_alone(tmp_path / "blocking", make_tensors(1), 3)
    tensors, begun = make_tensors(1), threading.Event()
    taken, background = Snapshot().begin(whole(tensors))(), Background()

    def write() -> Path:
        begun.wait(20)
        run_dir = tmp_path / "background"
        return save(run_dir, taken, progress=progress(3), writer=alone())

    background.start(3, write)
    assert background.ended() is None
    for tensor in tensors.values():
        tensor.add_(1)  # the next step
    begun.set()
    ended = background.wait()
    assert ended is not None
    assert ended.folder is not None
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in ended.folder.iterdir()) == names
    for name in names:
        assert (ended.folder / name).read_bytes() == (expected / name).read_bytes()
    assert background.ended() is background.wait() is None


def test_a_write_that_fails_is_told_and_another_may_follow() -> None:
    background = Background()

    def fail() -> Path:
        raise CheckpointError("no space left")

    background.start(1, fail)
    ended = background.wait()
    assert ended is not None
    assert (ended.folder, str(ended.error), ended.step) == (None, "no space left", 1)
    background.start(2, lambda: Path("folder"))
    ended = background.wait()
    assert ended is not None
    assert ended.folder == Path("folder")


def test_two_writes_at_once_are_a_mistake() -> None:
    background, go = Background(), threading.Event()
    background.start(1, lambda: Path(str(go.wait(20))))
    with pytest.raises(AssertionError, match="under way"):
        background.start(2, Path)
    go.set()
    background.wait()

"""A shard is a safetensors file, its digests are those of its bytes, it is not written twice."""

import errno
import os
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from weft.checkpoint import shard
from weft.checkpoint.digest import crc32_of, crc32_of_file

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.uint8)


@pytest.mark.parametrize("block", [5, 1 << 24])
def test_what_is_written_is_what_safetensors_reads(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "_BLOCK", block)
    tensors = {f"kind/{n}@0-7": torch.arange(7).to(d) for n, d in enumerate(DTYPES)}
    path = tmp_path / "shard"
    written = shard.write_shard(path, tensors)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)
        assert written.pieces[key] == crc32_of(tensor)
    assert written.num_bytes == path.stat().st_size
    assert written.crc32 == crc32_of_file(path)


class AtOnce(Executor):
    """Does what it is given before the caller goes on."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except OSError as error:
            future.set_exception(error)
        return future


def test_the_disk_begins_before_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "_BLOCK", 64)
    monkeypatch.setattr(shard, "_AHEAD", 128)
    sizes: list[int] = []
    monkeypatch.setattr(shard.os, "fsync", lambda number: sizes.append(os.fstat(number).st_size))
    with (tmp_path / "file").open("wb", buffering=0) as file:
        shard._write_all(file, [bytes(100), bytes(300)], AtOnce())
    assert sizes == [164, 292]


def test_an_error_that_the_disk_tells_early_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(shard, "_AHEAD", 8)
    monkeypatch.setattr(shard.os, "fsync", fail)
    with (
        (tmp_path / "file").open("wb", buffering=0) as file,
        pytest.raises(OSError, match="broken"),
    ):
        shard._write_all(file, [bytes(100)], AtOnce())


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    shard.write_shard(tmp_path / "shard", {"a": torch.ones(1)})
    with pytest.raises(FileExistsError):
        shard.write_shard(tmp_path / "shard", {"a": torch.ones(1)})

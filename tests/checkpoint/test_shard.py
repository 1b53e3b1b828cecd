"""A shard is a safetensors file, its digests are those of its bytes, it is not written twice."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from weft.checkpoint import shard
from weft.checkpoint.digest import crc32_of, sha256_of_file

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
        assert written.crc32[key] == crc32_of(tensor)
    assert written.num_bytes == path.stat().st_size
    assert written.sha256 == sha256_of_file(path)


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    shard.write_shard(tmp_path / "shard", {"a": torch.ones(1)})
    with pytest.raises(FileExistsError):
        shard.write_shard(tmp_path / "shard", {"a": torch.ones(1)})

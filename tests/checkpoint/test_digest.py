"""The digest of a whole follows from its parts, and an expert is known by its content."""

import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.checkpoint.digest import combine_crc32, crc32_of, crc32_of_file, fingerprint_expert


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_crc_of_two_parts_is_that_of_the_whole(first: bytes, second: bytes) -> None:
    combined = combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second))
    assert combined == zlib.crc32(first + second)


def test_crc_combines_over_long_parts() -> None:
    first, second = bytes(range(256)) * 4096, b"\x00" * (1 << 20) + b"z"
    combined = combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second))
    assert combined == zlib.crc32(first + second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_crc_sees_every_bit_of_every_dtype(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).to(dtype)
    before = crc32_of(tensor)
    assert before == crc32_of(tensor.reshape(2, 3)) == crc32_of(tensor.clone())
    for byte in range(tensor.nbytes):
        other = tensor.clone()
        other.view(torch.uint8)[byte] ^= 1
        assert crc32_of(other) != before
    assert crc32_of(tensor[:0]) == 0


def test_fingerprint_tells_experts_apart_by_content_name_and_shape() -> None:
    gate, down = torch.randn(3, 2), torch.randn(2, 3)
    prints = {
        fingerprint_expert({"gate": gate, "down": down}),
        fingerprint_expert({"gate": gate + 1, "down": down}),
        fingerprint_expert({"up": gate, "down": down}),
        fingerprint_expert({"gate": gate.reshape(2, 3), "down": down}),
        fingerprint_expert({"gate": gate.bfloat16(), "down": down}),
    }
    assert len(prints) == 5
    assert fingerprint_expert({"down": down, "gate": gate}) in prints


def test_file_digest_reads_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 5_000_000)
    before = crc32_of_file(path)
    path.write_bytes(b"a" * 4_999_999 + b"b")
    assert crc32_of_file(path) != before

"""How a shard file is written: a safetensors file, straight from the memory of its tensors.

    8 bytes: length of the header | header, JSON: key -> dtype, shape, offsets | elements, in order

Its digests are taken from memory while it is written, each by a thread of its own: all three
release the interpreter, so that a training step beside them is not held up.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from weft.checkpoint.durable import sync_file
from weft.checkpoint.format import DTYPES

_ALIGNMENT = 8  # of the elements in the file; the header is padded with spaces, as the format says
_BLOCK = 1 << 24  # bytes of one call: some milliseconds, so that threads take turns


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What is known of a shard file once it is on the disk."""

    num_bytes: int
    sha256: str
    crc32: Mapping[str, int]


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """Writes flat CPU tensors by their keys, and returns when the file is on the disk."""
    header = _header(tensors)
    content = {key: _bytes(tensor) for key, tensor in tensors.items()}
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="digest") as pool:
        sha256 = pool.submit(_sha256, header, list(content.values()))
        crc32 = pool.submit(_crc32, content)
        with path.open("xb", buffering=0) as file:
            for part in (header, *content.values()):
                _write(file, part)
        sync_file(path)
        num_bytes = len(header) + sum(len(part) for part in content.values())
        return Written(num_bytes=num_bytes, sha256=sha256.result(), crc32=crc32.result())


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    table, start = {}, 0
    for key, tensor in tensors.items():
        dtype, element = DTYPES[str(tensor.dtype).removeprefix("torch.")]
        stop = start + tensor.numel() * element
        table[key] = {"dtype": dtype, "shape": [tensor.numel()], "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _blocks(part: bytes | memoryview) -> Sequence[bytes | memoryview]:
    return [part[start : start + _BLOCK] for start in range(0, len(part), _BLOCK)]


def _write(file: FileIO, part: bytes | memoryview) -> None:
    for block in _blocks(part):
        done = 0
        while done < len(block):
            done += file.write(block[done:]) or 0


def _sha256(header: bytes, content: Sequence[memoryview]) -> str:
    digest = hashlib.sha256(header)
    for part in content:
        for block in _blocks(part):
            digest.update(block)
    return digest.hexdigest()


def _crc32(content: Mapping[str, memoryview]) -> Mapping[str, int]:
    found = {}
    for key, part in content.items():
        crc32 = 0
        for block in _blocks(part):
            crc32 = zlib.crc32(block, crc32)
        found[key] = crc32
    return found

"""How a shard file is written: a safetensors file, straight from the memory of its tensors.

    8 bytes: length of the header | header, JSON: key -> dtype, shape, offsets | elements, in order

While this thread writes, one sums the checksums from memory and one has the disk begin: all three
release the interpreter, so that a training step beside them is not held up, and the wait for the
disk at the end is for the last bytes only.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from weft.checkpoint.digest import combine_crc32
from weft.checkpoint.durable import sync_file
from weft.checkpoint.format import DTYPES

_ALIGNMENT = 8  # of the elements in the file; the header is padded with spaces, as the format says
_BLOCK = 1 << 24  # bytes of one call: some milliseconds, so that threads take turns
_AHEAD = 1 << 27  # bytes written before the disk is told to begin: a tenth of a second of its time


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What is known of a shard file once it is on the disk: CRC-32 of all, and of its pieces."""

    num_bytes: int
    crc32: int
    pieces: Mapping[str, int]


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """Writes flat CPU tensors by their keys, and returns when the file is on the disk."""
    header = _header(tensors)
    content = {key: _bytes(tensor) for key, tensor in tensors.items()}
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="shard") as pool:
        sums = pool.submit(_crc32, content)
        with path.open("xb", buffering=0) as file:
            _write_all(file, (header, *content.values()), pool)
        sync_file(path)
        pieces = sums.result()
    crc32, num_bytes = zlib.crc32(header), len(header)
    for key, part in content.items():
        crc32 = combine_crc32(crc32, pieces[key], len(part))
        num_bytes += len(part)
    return Written(num_bytes=num_bytes, crc32=crc32, pieces=pieces)


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


def _write_all(file: FileIO, parts: Iterable[bytes | memoryview], pool: Executor) -> None:
    """Writes parts one after the other, the disk not far behind."""
    ahead, syncs = 0, list[Future[None]]()
    for part in parts:
        for block in _blocks(part):
            _write(file, block)
            ahead += len(block)
            if ahead >= _AHEAD and all(sync.done() for sync in syncs):
                syncs.append(pool.submit(os.fsync, file.fileno()))
                ahead = 0
    for sync in syncs:  # the kernel tells an error of the disk once, maybe here
        sync.result()


def _write(file: FileIO, block: bytes | memoryview) -> None:
    done = 0
    while done < len(block):
        done += file.write(block[done:]) or 0


def _crc32(content: Mapping[str, memoryview]) -> Mapping[str, int]:
    found = {}
    for key, part in content.items():
        crc32 = 0
        for block in _blocks(part):
            crc32 = zlib.crc32(block, crc32)
        found[key] = crc32
    return found

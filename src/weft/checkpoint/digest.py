"""What tells content apart: CRC-32 of a piece and of a file, fingerprint of an expert.

    crc(a b) = crc(a) x^(8 len(b)) + crc(b)     over GF(2), modulo the polynomial of CRC-32

So the CRC of a tensor or a file follows from those of its pieces, however it was cut: every byte is
summed once, and the fingerprint of an expert is the same for every layout that wrote it. Rot is
what this detects, all of it up to 32 bits in a row and all but 2^-32 of the rest; it is no
signature against a forger.
"""

import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

_POLYNOMIAL = (
    0xEDB88320  # CRC-32 of IEEE 802.3, bits reversed: the lowest bit is the highest power of x
)
_ONE = 1 << 31
_X = 1 << 30
_EXPERT = re.compile(r"(.*\.experts\.\d+)\.(.+)")
_READ_BYTES = 1 << 22  # larger reads are not faster


class Checksummed(Protocol):
    """What a fingerprint needs to know of a piece."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def crc32(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...


def crc32_of(tensor: Tensor) -> int:
    """The CRC-32 of the bytes of a CPU tensor."""
    if tensor.numel() == 0:
        return 0
    return zlib.crc32(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def combine_crc32(first: int, second: int, second_bytes: int) -> int:
    """The CRC-32 of two byte strings one after the other, from theirs and the length of the second.

    Example:
        >>> warp, weft = zlib.crc32(b"warp and "), zlib.crc32(b"weft")
        >>> combine_crc32(warp, weft, 4) == zlib.crc32(b"warp and weft")
        True
    """
    return _multiply(_power_of_x(8 * second_bytes), first) ^ second


def crc32_of_file(path: Path) -> int:
    """The CRC-32 of the content of a file."""
    crc32 = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            crc32 = zlib.crc32(block, crc32)
    return crc32


def fingerprint_expert(tensors: Mapping[str, Tensor]) -> str:
    """The fingerprint of an expert from its master weights by their last names (gate, up, down)."""
    return _fingerprint(
        (name, tuple(t.shape), str(t.dtype).removeprefix("torch."), crc32_of(t))
        for name, t in tensors.items()
    )


def fingerprint_experts(pieces: Iterable[Checksummed]) -> dict[str, str]:
    """The fingerprint of every expert by its name, `layers.3.experts.17`, from its pieces."""
    experts: dict[str, dict[str, tuple[tuple[int, ...], str, int]]] = defaultdict(dict)
    for piece in sorted(pieces, key=lambda piece: piece.start):
        match = _EXPERT.fullmatch(piece.name) if piece.kind == "master" else None
        if match:
            expert, name = match.groups()
            *_, before = experts[expert].get(name, (0,))
            crc32 = combine_crc32(before, piece.crc32, piece.num_bytes)
            experts[expert][name] = (piece.shape, piece.dtype, crc32)
    return {
        expert: _fingerprint((name, *known) for name, known in tensors.items())
        for expert, tensors in experts.items()
    }


def _fingerprint(tensors: Iterable[tuple[str, tuple[int, ...], str, int]]) -> str:
    return hashlib.sha256(json.dumps(sorted(tensors)).encode()).hexdigest()


def _multiply(a: int, b: int) -> int:
    """The product of two polynomials modulo the polynomial."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


@lru_cache(maxsize=4096)  # one entry a piece length; a model has a few hundred
def _power_of_x(exponent: int) -> int:
    power, square = _ONE, _X
    while exponent:
        if exponent & 1:
            power = _multiply(square, power)
        square = _multiply(square, square)
        exponent >>= 1
    return power

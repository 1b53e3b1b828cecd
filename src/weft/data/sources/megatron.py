r"""Megatron's indexed data sets: `NAME.bin` with tokens, `NAME.idx` with where sequences are.

    .idx   "MMIDIDX\0\0"  version u64 = 1  dtype u8  sequences u64  bounds u64
           lengths i32[sequences]  byte offsets i64[sequences]  first sequences of documents
           i64[bounds]

It is trained on where it lies. A document of ours starts with the end of text, one of theirs ends
with it, if it was made so; either way the stream has one of them between two documents.
"""

import struct
import zlib
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from weft.data.stream import TokenStream, make_stream
from weft.data.tokenizer import Tokenizer
from weft.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<9sQBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # Megatron's codes of integers


@final
class MegatronTokens:
    """Their tokens, each document started by the end of text."""

    def __init__(
        self,
        path: Path,
        tokens: NDArray[Any],
        *,
        firsts: NDArray[np.int64],
        begins: NDArray[np.int64],
        tokenizer: Tokenizer,
    ) -> None:
        self._path = path
        self._tokens = tokens
        self._firsts = firsts
        self._begins = begins
        self._tokenizer = tokenizer
        self._state = _state(path)

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, place: slice, /) -> NDArray[Any]:
        first, last, _ = place.indices(len(self))
        if last <= first:
            return np.zeros(0, np.int64)
        if _state(self._path) != self._state:
            raise _damaged(self._path, "it was changed while it was being read")
        document = int(np.searchsorted(self._begins, first, side="right")) - 1
        shift = int(self._firsts[document]) - int(self._begins[document]) - 1
        started = first == self._begins[document]
        inside = self._tokens[first + started + shift : last + shift]
        if len(inside) and not 0 <= int(inside.min()) <= int(inside.max()) < self._tokenizer.size:
            raise DataError(
                f"{self._path}, document {document}: token {int(inside.max())}, lowest "
                f"{int(inside.min())}; expected 0 to {self._tokenizer.size - 1}; set "
                "data.tokenizer to the one it was made with"
            )
        return np.concatenate([[self._tokenizer.end_of_text], inside]) if started else inside


def open_megatron(path: str | Path, tokenizer: Tokenizer) -> tuple[TokenStream, str]:
    """The stream of an indexed data set, given with or without its suffix, and its digest.

    Numerics:
        The digest is of the index and of size and time of change of the tokens, not of them all.

    Raises:
        DataError: a file is missing, is not of this format, or does not fit the other.
    """
    stem = Path(path)
    stem = stem.with_suffix("") if stem.suffix in {".bin", ".idx"} else stem
    idx, binary = stem.with_name(stem.name + ".idx"), stem.with_name(stem.name + ".bin")
    content = _whole(idx)
    dtype, lengths, offsets, bounds = _parse(idx, content)
    width = np.dtype(dtype).itemsize
    stops = offsets + lengths.astype(np.int64) * width
    size = _state(binary)[0]
    if len(offsets) and (offsets.min() < 0 or int(stops.max()) > size or size % width):
        raise _damaged(binary, f"{size} bytes, the index needs {int(stops.max())}")
    if len(offsets) and (np.any(offsets[1:] != stops[:-1]) or np.any(offsets % width)):
        raise _damaged(idx, "sequences do not lie one after the other")
    if not len(lengths) or not size:
        raise DataError(f"{idx} has no tokens; expected documents; try another data.path")
    tokens = np.memmap(binary, dtype, "r")
    edges = np.concatenate([offsets, stops[-1:]]) // width
    firsts, lasts = edges[bounds[:-1]], edges[bounds[1:]]
    kept = lasts > firsts
    firsts, lasts = firsts[kept], lasts[kept]
    lengths = lasts - firsts - (tokens[lasts - 1] == tokenizer.end_of_text) + 1
    begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    stream = make_stream(
        MegatronTokens(binary, tokens, firsts=firsts, begins=begins, tokenizer=tokenizer),
        begins=begins[:-1],
        lengths=lengths,
        masked=np.zeros_like(lengths),
        end_of_text=tokenizer.end_of_text,
    )
    return stream, f"megatron {zlib.crc32(content):08x} {size}"


def _parse(idx: Path, content: bytes) -> tuple[str, NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The dtype of tokens, lengths and offsets of sequences, bounds of documents."""
    if len(content) < _HEAD.size or not content.startswith(_MAGIC):
        raise _damaged(idx, f"it starts with {content[:9]!r}, expected {_MAGIC!r}")
    _, version, code, sequences, num_bounds = _HEAD.unpack_from(content)
    if version != 1 or code not in _DTYPES:
        raise _damaged(idx, f"version {version} and dtype {code}, expected 1 and an integer type")
    if len(content) < _HEAD.size + 12 * sequences + 8 * num_bounds or num_bounds < 1:
        raise _damaged(idx, f"{len(content)} bytes are too few for {sequences} sequences")
    at = _HEAD.size
    lengths = np.frombuffer(content, "<i4", sequences, at)
    offsets = np.frombuffer(content, "<i8", sequences, at + 4 * sequences)
    bounds = np.frombuffer(content, "<i8", num_bounds, at + 12 * sequences)
    if np.any(lengths < 0):
        raise _damaged(idx, "a sequence has a negative length")
    if bounds[0] != 0 or bounds[-1] != sequences or np.any(np.diff(bounds) < 0):
        raise _damaged(idx, f"documents do not cover the {sequences} sequences")
    return _DTYPES[code], lengths, offsets, bounds


def _whole(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return found.st_size, found.st_mtime_ns


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot read {path}: {error.strerror}; expected NAME.bin beside NAME.idx; set data.path "
        "to the common NAME"
    )


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} is no indexed data set of Megatron, or a damaged one: {reason}; make it anew"
    )

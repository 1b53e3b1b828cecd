"""One shard of a prepared corpus: written once, mapped into memory, checked where it is read.

    .idx   "WEFTIDX1"  documents u64  blocks u64  lengths i64[]  masked i64[]  crc32 u32[blocks]

The tokens have a checksum a block. It is compared when a window first reads from the block, so that
damage is found before it is trained on and no start has to read the corpus.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from weft.data.document import Digest, Document, Sieve
from weft.data.prepared.manifest import Shard, sync_file
from weft.data.stream import dtype_for
from weft.data.tokenizer import Tokenizer
from weft.errors import DataError

BLOCK_BYTES = 1 << 16  # a checksum takes 20 us, and a window of 4096 tokens lies in one or two
_MAGIC = b"WEFTIDX1"
_HEAD = struct.Struct("<8sQQ")
_BATCH_BYTES = 1 << 20  # of text that is tokenized at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """The index of a shard."""

    lengths: NDArray[np.int64]
    masked: NDArray[np.int64]
    crc32: NDArray[np.uint32]


def write_shard(
    folder: Path, name: str, documents: Iterable[Document], *, tokenizer: Tokenizer, sieve: Sieve
) -> Shard:
    """Tokenizes documents into a shard; its files are on the disk, under their names, on return."""
    writer = _Writer(tokenizer)
    aside = folder / f"{name}.bin.partial"
    with aside.open("wb") as file:
        for batch in _batches(documents):
            file.write(writer.encode(batch))
        sync_file(file.fileno())
    aside.replace(folder / f"{name}.bin")
    index = writer.index()
    aside = folder / f"{name}.idx.partial"
    with aside.open("wb") as file:
        file.write(index)
        sync_file(file.fileno())
    aside.replace(folder / f"{name}.idx")
    return Shard(
        name=name,
        num_documents=len(writer.lengths),
        num_tokens=sum(writer.lengths),
        num_bytes=writer.num_bytes,
        num_empty=writer.num_empty,
        num_skipped=len(sieve.skipped),
        first_skipped=sieve.skipped[0] if sieve.skipped else "",
        max_token=writer.max_token,
        bin_bytes=writer.bin_bytes,
        idx_bytes=len(index),
        idx_crc32=zlib.crc32(index),
        digest=writer.digest.value(),
    )


@final
class _Writer:
    """What a shard in the making has come to."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.dtype = dtype_for(tokenizer.size)
        self.lengths: list[int] = []
        self.masked: list[int] = []
        self.num_bytes = self.num_empty = self.bin_bytes = 0
        self.max_token = tokenizer.end_of_text
        self.digest = Digest()
        self.crc32: list[int] = []
        self._block, self._in_block = 0, 0

    def encode(self, batch: list[Document]) -> bytes:
        """The tokens of some documents as they are written."""
        filled = [document for document in batch if document.content]
        self.num_empty += len(batch) - len(filled)
        encode = self.tokenizer.encode
        contents = encode([document.content for document in filled])
        prompts = encode([document.prompt for document in filled])
        end = np.array([self.tokenizer.end_of_text], self.dtype)
        pieces: list[NDArray[Any]] = []
        for document, prompt, content in zip(filled, prompts, contents, strict=True):
            self.digest.add(document)
            self.num_bytes += len(document.content) + len(document.prompt)
            self.lengths.append(1 + len(prompt) + len(content))
            self.masked.append(len(prompt))
            pieces += (end, prompt, content)
        tokens = np.concatenate(pieces).astype(self.dtype) if pieces else end[:0]
        self.max_token = max(self.max_token, int(tokens.max(initial=0)))
        return self._sum(tokens.astype(tokens.dtype.newbyteorder("<")).tobytes())

    def index(self) -> bytes:
        """The content of the index file."""
        crc32 = [*self.crc32, self._block] if self._in_block else self.crc32
        return b"".join(
            (
                _HEAD.pack(_MAGIC, len(self.lengths), len(crc32)),
                np.array(self.lengths, "<i8").tobytes(),
                np.array(self.masked, "<i8").tobytes(),
                np.array(crc32, "<u4").tobytes(),
            )
        )

    def _sum(self, content: bytes) -> bytes:
        """Takes the checksums of blocks, which end where they like within what is written."""
        self.bin_bytes += len(content)
        view = memoryview(content)
        while view:
            piece = view[: BLOCK_BYTES - self._in_block]
            self._block = zlib.crc32(piece, self._block)
            self._in_block += len(piece)
            view = view[len(piece) :]
            if self._in_block == BLOCK_BYTES:
                self.crc32.append(self._block)
                self._block, self._in_block = 0, 0
        return content


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.content) + len(document.prompt)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


def check_files(folder: Path, shard: Shard) -> None:
    """Returns when both files of a shard have the size they were written with.

    Raises:
        DataError: one is missing, or was cut or changed.
    """
    for suffix, expected in ((".bin", shard.bin_bytes), (".idx", shard.idx_bytes)):
        path = folder / (shard.name + suffix)
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(
                f"cannot read {path}: {error.strerror}; expected {expected} bytes; prepare the "
                "corpus anew: finished shards are kept"
            ) from error
        if found != expected:
            raise damaged(path, f"{found} bytes, expected {expected}")


def read_index(folder: Path, shard: Shard, *, token_bytes: int) -> Index:
    """The index of a shard.

    Raises:
        DataError: it is not the one that was written, or does not describe the tokens.
    """
    check_files(folder, shard)
    path = folder / f"{shard.name}.idx"
    content = path.read_bytes()
    if content[: len(_MAGIC)] != _MAGIC:
        raise damaged(path, f"it starts with {content[:8]!r}, expected {_MAGIC!r}")
    if zlib.crc32(content) != shard.idx_crc32:
        raise damaged(path, "its checksum is not the one in the manifest")
    _, documents, blocks = _HEAD.unpack_from(content)
    if documents != shard.num_documents or len(content) != _HEAD.size + 16 * documents + 4 * blocks:
        raise damaged(path, f"{documents} documents, the manifest has {shard.num_documents}")
    lengths = np.frombuffer(content, "<i8", documents, _HEAD.size)
    masked = np.frombuffer(content, "<i8", documents, _HEAD.size + 8 * documents)
    crc32 = np.frombuffer(content, "<u4", blocks, _HEAD.size + 16 * documents)
    total = int(lengths.sum())
    if total != shard.num_tokens or total * token_bytes != shard.bin_bytes:
        raise damaged(path, f"{total} tokens, the manifest has {shard.num_tokens}")
    return Index(lengths=lengths, masked=masked, crc32=crc32)


@final
class ShardTokens:
    """The tokens of a shard, mapped into memory; each block is checked when it is first read."""

    def __init__(self, folder: Path, shard: Shard, index: Index, *, token_bytes: int) -> None:
        self._path = folder / f"{shard.name}.bin"
        self._width = token_bytes
        self._crc32 = index.crc32
        self._checked = np.zeros(len(index.crc32), np.bool_)
        self._length = shard.num_tokens
        self._state: tuple[int, int] | None = None
        self._bytes: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: slice, /) -> NDArray[Any]:
        first, last, _ = place.indices(self._length)
        if last <= first:
            return np.zeros(0, f"<u{self._width}")
        mapped = self._map()
        first, last = first * self._width, last * self._width
        for block in range(first // BLOCK_BYTES, -(-last // BLOCK_BYTES)):
            if not self._checked[block]:
                self._check(block)
        return mapped[first:last].view(f"<u{self._width}")

    def check_all(self) -> None:
        """Compares every checksum."""
        for block in range(len(self._crc32)):
            self._check(block)

    def close(self) -> None:
        """Lets go of the file; the next read maps it again."""
        self._bytes = None

    def _map(self) -> NDArray[np.uint8]:
        # NOTE: reading a mapped file behind its new end would end the process without a word.
        state = _state(self._path)
        if self._state not in {None, state}:
            raise damaged(self._path, "it was changed while it was being read")
        self._state = state
        if self._bytes is None:
            self._bytes = np.memmap(self._path, np.uint8, "r")
        return self._bytes

    def _check(self, block: int) -> None:
        first = block * BLOCK_BYTES
        content = self._map()[first : first + BLOCK_BYTES]
        if zlib.crc32(content.data) != self._crc32[block]:
            raise damaged(
                self._path, f"the checksum of bytes {first} to {first + BLOCK_BYTES} does not hold"
            )
        self._checked[block] = True


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise damaged(path, f"it cannot be read any more ({error.strerror})") from error
    return found.st_size, found.st_mtime_ns


def damaged(path: Path, reason: str) -> DataError:
    """The error of a file that is not what was written."""
    return DataError(
        f"{path} is damaged: {reason}; delete it and prepare the corpus anew: whole shards are kept"
    )

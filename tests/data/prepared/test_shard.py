"""What is written is read, and nothing else is: every changed bit is found before it is used."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import sentences

from weft.data.document import Document, Sieve
from weft.data.prepared import shard as module
from weft.data.prepared.manifest import Shard
from weft.data.prepared.shard import ShardTokens, check_files, damaged, read_index, write_shard
from weft.data.tokenizer import Bytes, open_tokenizer
from weft.errors import DataError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    monkeypatch.setattr(module, "_BATCH_BYTES", 100)


def documents() -> list[Document]:
    texts = [text.encode() for text in sentences(20)]
    plain = [Document(name=str(i), content=text) for i, text in enumerate(texts)]
    pair = Document(name="pair", content=b"yes", prompt=b"is it?")
    return [*plain, Document(name="empty", content=b"", prompt=b"what?"), pair]


def write(folder: Path) -> Shard:
    return write_shard(folder, "s", documents(), tokenizer=Bytes(), sieve=Sieve("stop"))


def open_shard(folder: Path, shard: Shard) -> tuple[ShardTokens, np.ndarray]:
    index = read_index(folder, shard, token_bytes=2)
    return ShardTokens(folder, shard, index, token_bytes=2), index.masked


def test_a_shard_holds_the_tokens_of_its_documents(tmp_path: Path) -> None:
    shard = write(tmp_path)
    tokens, masked = open_shard(tmp_path, shard)
    kept = [d for d in documents() if d.content]
    expected = [t for d in kept for t in (256, *d.prompt, *d.content)]
    assert tokens[:].tolist() == expected
    assert tokens[3:9].tolist() == expected[3:9]
    assert masked.tolist() == [len(d.prompt) for d in kept]
    assert (shard.num_documents, shard.num_empty) == (21, 1)
    assert shard.max_token == 256
    assert shard.num_bytes == sum(len(d.content) + len(d.prompt) for d in kept)
    tokens.close()
    assert tokens[:2].tolist() == expected[:2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.bin", "s.idx"]


def test_a_shard_of_pairs_is_decoded_to_its_texts(tmp_path: Path, tokenizer_file: Path) -> None:
    pairs = open_tokenizer(str(tokenizer_file))
    shard = write_shard(tmp_path, "s", documents(), tokenizer=pairs, sieve=Sieve("stop"))
    tokens, _ = open_shard(tmp_path, shard)
    kept = [(d.prompt + d.content).decode() for d in documents() if d.content]
    assert pairs.decode(tokens[:].tolist()) == "".join(kept)


def test_no_document_makes_an_empty_shard(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "s", [], tokenizer=Bytes(), sieve=Sieve("stop"))
    tokens, _ = open_shard(tmp_path, shard)
    assert len(tokens) == len(tokens[:]) == 0


def test_every_mutation_is_found(tmp_path: Path) -> None:
    draw = random.Random(1)
    shard = write(tmp_path)
    whole = {suffix: (tmp_path / f"s{suffix}").read_bytes() for suffix in (".bin", ".idx")}
    silent, named = [], 0
    for number in range(100):
        suffix = draw.choice((".bin", ".idx"))
        content = bytearray(whole[suffix])
        place = draw.randrange(len(content))
        match draw.choice(("flip", "cut", "grow", "swap")):
            case "flip":
                content[place] ^= 1 << draw.randrange(8)
            case "cut":
                del content[place:]
            case "grow":
                content += b"\0"
            case _:
                content[place] = (content[place] + draw.randrange(1, 256)) % 256
        for name, original in whole.items():
            (tmp_path / f"s{name}").write_bytes(content if name == suffix else original)
        try:
            tokens, _ = open_shard(tmp_path, shard)
            _ = tokens[:]
            silent.append(number)
        except DataError as error:
            named += f"s{suffix}" in str(error)
    assert silent == []
    assert named == 100


def test_control_without_checksums_mutations_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write(tmp_path)
    content = bytearray((tmp_path / "s.bin").read_bytes())
    content[10] ^= 1
    (tmp_path / "s.bin").write_bytes(content)
    monkeypatch.setattr(ShardTokens, "_check", lambda *_: None)
    tokens, _ = open_shard(tmp_path, shard)
    _ = tokens[:]


def test_only_blocks_that_are_read_are_checked(tmp_path: Path) -> None:
    shard = write(tmp_path)
    content = bytearray((tmp_path / "s.bin").read_bytes())
    content[200] ^= 1
    (tmp_path / "s.bin").write_bytes(content)
    tokens, _ = open_shard(tmp_path, shard)
    assert len(tokens[:96]) == 96
    with pytest.raises(DataError, match=r"s.bin is damaged: the checksum of bytes 192 to 256"):
        _ = tokens[96:97]
    with pytest.raises(DataError, match="checksum"):
        tokens.check_all()


@pytest.mark.parametrize("change", ["cut", "touch", "gone"])
def test_a_file_changed_while_it_is_read_is_noticed(tmp_path: Path, change: str) -> None:
    shard = write(tmp_path)
    tokens, _ = open_shard(tmp_path, shard)
    _ = tokens[:3]
    path = tmp_path / "s.bin"
    match change:
        case "cut":
            os.truncate(path, 2)
        case "touch":
            os.utime(path, ns=(1, 1))
        case _:
            path.unlink()
    with pytest.raises(DataError, match="changed while|any more"):
        _ = tokens[:3]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    shard = write(tmp_path)
    (tmp_path / "s.idx").unlink()
    with pytest.raises(DataError, match=r"cannot read .*s\.idx"):
        check_files(tmp_path, shard)
    assert "s.idx" in str(damaged(tmp_path / "s.idx", "gone"))

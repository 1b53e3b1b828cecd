"""A manifest comes back as it was written; any other file is refused by name."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from weft.data.prepared.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    read_manifest,
    read_shard,
    sync_folder,
    write_manifest,
    write_whole,
)
from weft.errors import DataError

SHARD = Shard(
    name="shard-00000",
    num_documents=1,
    num_tokens=2,
    num_bytes=1,
    num_empty=0,
    num_skipped=0,
    first_skipped="",
    max_token=256,
    bin_bytes=4,
    idx_bytes=44,
    idx_crc32=5,
    digest="d",
)
MADE = Manifest(
    version=1,
    tokenizer="bytes",
    tokenizer_digest="bytes",
    vocabulary=257,
    end_of_text=256,
    token_bytes=2,
    digest="d",
    shards=(SHARD,),
)


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, MADE)
    assert read_manifest(tmp_path) == MADE
    assert [p.name for p in tmp_path.iterdir()] == [MANIFEST]
    sync_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "version 2"),
        ({"token_bytes": 3}, "3-byte"),
        ({"vocabulary": "many"}, "vocabulary = 'many', expected int"),
        ({"vocabulary": True}, "vocabulary = True"),
        ({"end_of_text": -1}, "end_of_text = -1"),
        ({"shards": {}}, "expected a list"),
        ({"shards": [3]}, "int, expected an object"),
        ({"shards": [{**asdict(SHARD), "name": "../x"}]}, "leads out of the folder"),
        ({"extra": 1}, r"\['extra'\]"),
    ],
)
def test_a_changed_manifest_is_refused(tmp_path: Path, changes: dict, reason: str) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({**asdict(MADE), **changes}))
    with pytest.raises(DataError, match=reason) as caught:
        read_manifest(tmp_path)
    assert MANIFEST in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{" * 100_000])
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    write_whole(tmp_path / "shard.json", content)
    with pytest.raises(DataError, match=r"shard.json is no record"):
        read_shard(tmp_path / "shard.json")


def test_a_folder_without_a_manifest_is_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="weft data prepare"):
        read_manifest(tmp_path)

"""Records of a streamed data set are documents; without the library the extra is named."""

import importlib.util
import sys
from pathlib import Path

import pytest
from tests.data.conftest import write_jsonl

from weft.data.document import Fields, Sieve
from weft.data.sources import hugging_face
from weft.errors import DataError


class Streamed:
    """A data set of three shards."""

    def __init__(self, shards: list[list[object]]) -> None:
        self.shards = shards
        self.num_shards = len(shards)

    def shard(self, *, num_shards: int, index: int) -> list[object]:
        assert num_shards == len(self.shards)
        return self.shards[index]


def test_every_shard_is_a_part_and_bad_records_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Streamed([[{"text": "a"}], [{"text": "b"}, {"text": 3}], []])
    monkeypatch.setattr(hugging_face, "_open", lambda _path: data)
    parts = hugging_face.cut("name", 1)
    sieve = Sieve("skip")
    found = [d for part in parts for d in hugging_face.read(part, Fields(), sieve)]
    assert [(d.name, d.content) for d in found] == [("0:0", b"a"), ("1:0", b"b")]
    assert "shard 1, record 1: field 'text' is int" in sieve.skipped[0]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"weft\[datasets\]"):
        hugging_face.cut("name", 1)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_folder_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    write_jsonl(tmp_path / "corpus" / "train.jsonl", [{"text": "one"}, {"text": "two"}])
    parts = hugging_face.cut(tmp_path / "corpus", 1)
    found = [d for part in parts for d in hugging_face.read(part, Fields(), Sieve("stop"))]
    assert [d.content for d in found] == [b"one", b"two"]
    with pytest.raises(DataError, match="cannot be opened as a data set"):
        hugging_face.cut(tmp_path / "nowhere", 1)

"""A prepared folder is the stream of its text, whatever its shards; its tokenizer is checked."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import sentences, write_jsonl

from weft.data.document import Fields
from weft.data.prepared import store
from weft.data.prepared.manifest import MANIFEST
from weft.data.prepared.prepare import Request, prepare
from weft.data.prepared.store import check_tokenizer, open_prepared, verify_prepared
from weft.data.stream import Ordered
from weft.data.tokenizer import Bytes, open_tokenizer
from weft.errors import DataError

TEXTS = sentences(40)


def prepared(folder: Path, *, part_bytes: int = 500, tokenizer: str = "bytes") -> Path:
    path = write_jsonl(folder / "a.jsonl", [{"text": text} for text in TEXTS])
    request = Request(
        source="jsonl",
        path=str(path),
        fields=Fields(),
        tokenizer=tokenizer,
        on_bad="stop",
        part_bytes=part_bytes,
    )
    out = folder / "out"
    prepare(request, out, workers=1, report=lambda _: None)
    return out


@pytest.mark.parametrize("part_bytes", [300, 10**6])
def test_the_stream_is_that_of_the_text(
    tmp_path: Path, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_MOST_OPEN", 2)
    stream, manifest = open_prepared(prepared(tmp_path, part_bytes=part_bytes), Bytes())
    assert (len(manifest.shards) > 5) == (part_bytes == 300)
    order = np.arange(40)[::-1]
    expected = [t for i in order for t in (256, *TEXTS[i].encode())]
    assert Ordered(stream, order).read(0, 10**6).tolist() == expected
    assert not isinstance(stream.tokens, np.ndarray)


def test_another_tokenizer_is_refused_with_the_one_to_take(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    folder = prepared(tmp_path, tokenizer=str(tokenizer_file))
    with pytest.raises(DataError, match=r"try data.tokenizer = \".*out/tokenizer.json\""):
        open_prepared(folder, Bytes())
    copy = open_tokenizer(str(folder / "tokenizer.json"))
    stream, manifest = open_prepared(folder, copy)
    assert copy.decode(Ordered(stream).read(0, 10**6).tolist()) == "".join(TEXTS)
    check_tokenizer(folder, manifest, open_tokenizer(str(tokenizer_file)))


def test_tokens_above_the_vocabulary_are_refused_before_they_are_read(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    content = json.loads((folder / MANIFEST).read_text())
    content["shards"][1]["max_token"] = 257
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match="shard-00001.bin is damaged: token 257"):
        open_prepared(folder, Bytes())


def test_verification_reads_everything(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    assert verify_prepared(folder).shards[0].num_documents
    last = max(folder.glob("*.bin"))
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    open_prepared(folder, Bytes())
    with pytest.raises(DataError, match=last.name):
        verify_prepared(folder)

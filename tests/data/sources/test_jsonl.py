"""Every line is read once however the file is cut; a bad one is named by its line and byte."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.conftest import write_jsonl

from weft.data.document import Document, Fields, Sieve
from weft.data.sources import jsonl
from weft.errors import DataError


def read_all(path: Path, part_bytes: int, sieve: Sieve | None = None) -> list[Document]:
    kept = sieve or Sieve("stop")
    parts = jsonl.cut(path, part_bytes)
    return [d for part in parts for d in jsonl.read(part, Fields(), kept)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=12), st.integers(1, 80), st.booleans())
def test_cuts_lose_and_repeat_no_line(tmp_path_factory, texts, part_bytes, closed) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = [json.dumps({"text": t.encode("utf-8", "ignore").decode()}) for t in texts]
    path.write_text("\n".join(lines) + ("\n\n" if closed else ""), encoding="utf-8")
    expected = [json.loads(line)["text"].encode() for line in lines]
    found = read_all(path, part_bytes)
    assert [d.content for d in found] == expected
    assert found == read_all(path, 10**6)
    assert len({d.name for d in found}) == len(found)


BAD = [
    (b'{"text": "ok" oops}', r"line 3 \(byte 34\): not JSON at character 15"),
    (b'{"text": "\xff"}', "line 3 .*not valid UTF-8 at byte 10 of the line"),
    (b"[1]", "the record is list"),
    (b'{"txt": ""}', "no field 'text', found 'txt'"),
    (b'{"text": "\\ud800"}', "no valid text: surrogates"),
    (b"[" * 100_000, "nested too deeply|not JSON"),
    (b'{"text": "' + b"x" * 90 + b'"}', "longer than 80 bytes"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_line_is_named_or_skipped(
    tmp_path: Path, line: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if b"xxx" in line:
        monkeypatch.setattr(jsonl, "_LONGEST_LINE", 80)
    good = b'{"text": "before"}\n'
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n'[:15] + b"\n" + good[:17] + b"\n" + line + b"\n" + good)
    path.write_bytes(b'{"text": "one"}\n' + b'{"text": "two!"}\n' + line + b"\n" + good)
    reason = reason.replace("34", "33")
    with pytest.raises(DataError, match=reason) as caught:
        read_all(path, 10**6)
    assert str(path) in str(caught.value)
    assert "line 3" in str(caught.value)
    sieve = Sieve("skip")
    assert [d.content for d in read_all(path, 10**6, sieve)] == [b"one", b"two!", b"before"]
    assert len(sieve.skipped) == 1


def test_prompts_and_answers_come_together(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "why", "a": "so"}])
    (part,) = jsonl.cut(path, 100)
    (document,) = jsonl.read(part, Fields(prompt="q", answer="a"), Sieve("stop"))
    assert (document.prompt, document.content) == (b"why", b"so")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.integers(1, 30))
def test_any_bytes_are_read_or_refused_and_never_a_traceback(
    tmp_path_factory, content, cut
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_bytes(content)
    read_all(path, cut, Sieve("skip"))

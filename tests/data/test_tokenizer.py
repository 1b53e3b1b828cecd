"""Any text comes back from its ids, and the short way to them gives what the library gives."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.data import tokenizer as module
from weft.data.tokenizer import Bytes, FromFile, open_tokenizer, train_tokenizer
from weft.errors import DataError

TRICKY = [
    "",
    " ",
    "a<|endoftext|>b",
    "don't  can't'LL 'S'",
    "tabs\t\tand\r\nlines \n\n x",
    "\x1c\x1dseparated\x1f words\x0b\x0c",
    "d\u00e9j\u00e0 \u00a0vu \u4e2d\u6587 \U0001f9f5",
    "x" * 100 + " " * 50 + "1234567890" * 9,
]
ascii_text = st.text(st.characters(max_codepoint=127), max_size=60)


@pytest.fixture(scope="module")
def pairs(tokenizer_file: Path) -> FromFile:
    opened = open_tokenizer(str(tokenizer_file))
    assert isinstance(opened, FromFile)
    return opened


def slow(pairs: FromFile, text: str) -> list[int]:
    return pairs._slowly([text])[0].tolist()


@settings(max_examples=200, deadline=None)
@given(st.one_of(ascii_text, st.text(max_size=40), st.sampled_from(TRICKY)))
def test_text_comes_back_and_the_short_way_is_the_long_one(pairs: FromFile, text: str) -> None:
    (ids,) = pairs.encode([text.encode()])
    assert pairs.decode(ids.tolist()) == text
    assert ids.tolist() == slow(pairs, text)
    assert pairs.end_of_text not in ids


def test_many_texts_at_once_are_each_alone(pairs: FromFile) -> None:
    together = pairs.encode([text.encode() for text in TRICKY])
    assert [ids.tolist() for ids in together] == [slow(pairs, text) for text in TRICKY]


def test_a_full_memory_of_words_changes_nothing(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_WORDS", 5)
    pairs = FromFile(tokenizer_file, tokenizer_file.read_bytes())
    for text in ("a b c d", "c d e f g", "a b c d e f g h", "warp weft", "a b"):
        assert pairs.encode([text.encode()])[0].tolist() == slow(pairs, text)


def test_control_another_rule_of_words_is_noticed(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WORD", module.re.compile(r"\s+|\S+"))
    pairs = FromFile(tokenizer_file, tokenizer_file.read_bytes())
    texts = ("warp weft loom", "shed, reed", "42cloth")
    assert any(pairs.encode([t.encode()])[0].tolist() != slow(pairs, t) for t in texts)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
        {"pre_tokenizer": None},
    ],
)
def test_a_tokenizer_of_another_make_takes_the_long_way(
    tokenizer_file: Path, tmp_path: Path, changes: dict
) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**json.loads(tokenizer_file.read_bytes()), **changes}))
    other = open_tokenizer(str(path))
    assert isinstance(other, FromFile)
    assert other._words is None
    assert other.encode([b"Warp Weft"])[0].tolist() == slow(other, "Warp Weft")


def test_the_vocabulary_is_as_large_as_asked_and_holds_every_byte(pairs: FromFile) -> None:
    assert 257 < pairs.size <= 400  # few words need few pairs
    assert pairs.end_of_text == 0
    assert train_tokenizer(iter([""]), vocab=300).size == 257
    with pytest.raises(DataError, match="at least 257"):
        train_tokenizer(iter(["text"]), vocab=256)


def test_bytes_are_the_default_and_a_path_is_read() -> None:
    assert isinstance(open_tokenizer("bytes"), Bytes)
    assert Bytes().encode([b"ab"])[0].tolist() == [97, 98]
    assert Bytes().decode([97, 256, 98]) == "ab"
    assert Bytes().width(256) == 1


def test_the_width_of_a_token_is_about_its_text(pairs: FromFile) -> None:
    ids = pairs.encode([b"warp weft loom"])[0].tolist()
    assert sum(map(pairs.width, ids)) == 14
    assert pairs.width(pairs.end_of_text) >= 1


def test_what_is_no_tokenizer_is_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    with pytest.raises(DataError, match="cannot read data.tokenizer"):
        open_tokenizer(str(tmp_path / "nowhere.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="is no tokenizer"):
        open_tokenizer(str(tmp_path / "bad.json"))
    content = tokenizer_file.read_text(encoding="utf-8").replace("<|endoftext|>", "<|nothing|>")
    (tmp_path / "endless.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="no token between documents"):
        open_tokenizer(str(tmp_path / "endless.json"))

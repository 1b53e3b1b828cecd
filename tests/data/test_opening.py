"""One recipe, one pair of streams: held back from each source, masked where there is a prompt."""

from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import sentences, write_jsonl, write_megatron

from weft.config.data import DataConfig
from weft.data.batches import Batches, ValidationBatches
from weft.data.document import Document, Fields
from weft.data.mixture import Mixture
from weft.data.opening import count_bytes, encode_documents, hold_back, open_data
from weft.data.prepared.prepare import Request, prepare
from weft.data.stream import Ordered, TokenStream, join
from weft.data.tokenizer import Bytes, Tokenizer, open_tokenizer
from weft.errors import DataError

TEXTS = sentences(60, seed=3)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "lines" / "a.jsonl", [{"text": text} for text in TEXTS])


def prepared(folder: Path, path: Path, tokenizer: str = "bytes") -> str:
    request = Request(
        source="jsonl", path=str(path), fields=Fields(), tokenizer=tokenizer, on_bad="stop"
    )
    prepare(request, folder, workers=1, report=lambda _: None)
    return str(folder)


def data(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"sequence": 8, "validation_bytes": 400, **changes})


def texts(stream: TokenStream, tokenizer: Tokenizer) -> list[str]:
    places = zip(stream.begins.tolist(), stream.lengths.tolist(), strict=True)
    return [tokenizer.decode(stream.tokens[b : b + n].tolist()) for b, n in places]


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("source", ["jsonl", "prepared"])
def test_both_sides_together_are_the_corpus(
    tmp_path: Path, lines: Path, tokenizer_file: Path, source: str, pairs: bool
) -> None:
    name = str(tokenizer_file) if pairs else "bytes"
    tokenizer = open_tokenizer(name)
    path = prepared(tmp_path / "p", lines, name) if source == "prepared" else str(lines)
    opened = open_data(data(source=source, path=path, tokenizer=name), tokenizer, seed=0)
    assert isinstance(opened.training, TokenStream)
    held, trained = texts(opened.validation, tokenizer), texts(opened.training, tokenizer)
    assert sorted(held + trained) == sorted(TEXTS)
    assert count_bytes(opened.validation, tokenizer) == sum(len(t.encode()) for t in held)
    # within the largest document of what was asked for; by tokens, in the mean
    assert 200 <= count_bytes(opened.validation, tokenizer) < 800
    again = open_data(data(source=source, path=path, tokenizer=name), tokenizer, seed=0)
    assert again.digest == opened.digest
    assert texts(again.validation, tokenizer) == held
    other = open_data(data(source=source, path=path, tokenizer=name), tokenizer, seed=1)
    assert texts(other.validation, tokenizer) != held


def test_megatron_files_are_opened_where_they_lie(tmp_path: Path) -> None:
    documents = [[[*text.encode(), 256]] for text in TEXTS]
    stem = write_megatron(tmp_path / "m", documents)
    opened = open_data(data(source="megatron", path=str(stem)), Bytes(), seed=0)
    assert isinstance(opened.training, TokenStream)
    both = texts(opened.training, Bytes()) + texts(opened.validation, Bytes())
    assert sorted(both) == sorted(TEXTS)


def test_a_mixture_opens_each_source_and_holds_back_from_each(tmp_path: Path, lines: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"file {number} " * 9)
    mix = [
        {"source": "text", "path": str(folder), "weight": 3.0},
        {"source": "prepared", "path": prepared(tmp_path / "p", lines), "weight": 1.0},
    ]
    opened = open_data(data(mix=mix), Bytes(), seed=0)
    assert isinstance(opened.training, Mixture)
    held = texts(opened.validation, Bytes())
    assert {text.startswith("file ") for text in held} == {True, False}
    trained = [text for stream in opened.training.streams for text in texts(stream, Bytes())]
    assert sorted(held + trained) == sorted([*TEXTS, *(f"file {i} " * 9 for i in range(20))])
    batches = Batches(opened.training, sequence=8, global_batch=16, micro_batch=4, seed=0)
    assert sum(component for component, _, _ in batches.samples(0)) in {3, 4, 5}
    mix[0]["weight"] = 1.0
    assert open_data(data(mix=mix), Bytes(), seed=0).digest != opened.digest


def test_only_answers_are_asked(tmp_path: Path) -> None:
    records = [{"q": f"{i}+{i}=", "a": str(2 * i) if i % 4 else ""} for i in range(40)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    config = data(source="jsonl", path=str(path), prompt_field="q", answer_field="a")
    config = config.model_copy(update={"validation_bytes": 10})
    opened = open_data(config, Bytes(), seed=0)
    batches = ValidationBatches(opened.validation, sequence=5, micro_batch=2)
    targets = np.concatenate([batch.targets for batch in batches])
    kept = [r for r in records if r["a"] and r["q"] + r["a"] in texts(opened.validation, Bytes())]
    expected = [t for r in kept for t in (*r["a"].encode(), 256)]
    assert targets[targets >= 0].tolist() == expected
    assert batches.divisor == len(expected)
    assert count_bytes(opened.validation, Bytes()) == sum(len(r["a"]) for r in kept)
    both = texts(opened.training, Bytes()) + texts(opened.validation, Bytes())
    assert len(both) == 30  # a document without an answer is none


def test_data_that_ask_for_nothing_are_refused(
    lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_masked(documents, tokenizer):
        pieces = tokenizer.encode([d.content for d in documents])
        return join(pieces, [len(p) + 1 for p in pieces], end_of_text=256)

    monkeypatch.setattr("weft.data.opening.encode_documents", all_masked)
    with pytest.raises(DataError, match="asks for nothing"):
        open_data(data(source="jsonl", path=str(lines)), Bytes(), seed=0)


def test_what_was_skipped_is_handed_on(lines: Path) -> None:
    lines.write_bytes(b"oops\n" + lines.read_bytes())
    with pytest.raises(DataError, match="line 1"):
        open_data(data(source="jsonl", path=str(lines)), Bytes(), seed=0)
    opened = open_data(data(source="jsonl", path=str(lines), on_bad="skip"), Bytes(), seed=0)
    assert len(opened.skipped) == 1


def test_a_corpus_too_large_for_memory_is_sent_to_prepare(
    lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weft.data.corpus import read_corpus

    with pytest.raises(DataError, match="weft data prepare"):
        read_corpus("jsonl", lines, whole_bytes=100)


def test_large_documents_are_held_back_last_and_never_all() -> None:
    sizes = [5, 100, 5, 5, 5]
    stream = join([np.zeros(n, np.int64) for n in sizes], [0] * 5, end_of_text=256)
    for seed in range(8):
        kept, held = hold_back(stream, seed=seed, validation_bytes=10, token_bytes=1)
        assert 101 in kept.lengths
        assert held.num_tokens == 12
    with pytest.raises(DataError, match="no file is left for training"):
        hold_back(stream, seed=0, validation_bytes=10**6, token_bytes=1)


def test_prompts_are_tokens_without_targets(tokenizer_file: Path) -> None:
    pairs = open_tokenizer(str(tokenizer_file))
    documents = (
        Document(name="a", prompt=b"warp and weft ", content=b"loom"),
        Document(name="b", content=b"reed"),
    )
    stream = encode_documents(documents, pairs)
    assert texts(stream, pairs) == ["warp and weft loom", "reed"]
    asked = Ordered(stream).num_asked(0, stream.num_tokens)
    assert asked == sum(len(ids) for ids in pairs.encode([b"loom", b"reed"])) + 2

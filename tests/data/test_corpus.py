"""The corpus is whole, in order and valid; only the seed decides how its files are split."""

import os
from pathlib import Path

import pytest

from weft.data.corpus import Corpus, Document, digest_documents, read_corpus, split_corpus
from weft.errors import DataError


def corpus_of(*sizes: int) -> Corpus:
    documents = tuple(
        Document(name=f"{i:03}.txt", content=b"x" * size) for i, size in enumerate(sizes)
    )
    return Corpus(documents=documents, digest=digest_documents(documents), empty=())


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_folder_is_read_recursively_in_order_of_name_without_hidden_files(tmp_path: Path) -> None:
    write(tmp_path, {"b.txt": b"B", "a/z.md": b"Z", ".git/x": b"\xff", "a/.h": b"\xff", "e": b""})
    corpus = read_corpus("text", tmp_path)
    assert [(d.name, d.content) for d in corpus.documents] == [("a/z.md", b"Z"), ("b.txt", b"B")]
    assert corpus.empty == ("e",)
    assert corpus.num_bytes == 2


def test_one_file_is_a_corpus(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"text", "b.txt": b"other"})
    assert [d.name for d in read_corpus("text", tmp_path / "a.txt").documents] == ["a.txt"]


def test_standard_library_is_read_without_tests_and_packages() -> None:
    corpus = read_corpus("stdlib")
    names = [d.name for d in corpus.documents]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert not [n for n in names if {"test", "tests", "site-packages"} & set(n.split("/"))]
    assert corpus.num_bytes > 5_000_000  # the smallest of Python 3.11 to 3.13 has over 10 MB
    assert corpus.digest == read_corpus("stdlib").digest


@pytest.mark.parametrize("bad", [b"ok \xff", b"ok \xc3", b"ok \xed\xa0\x80", b"ok \xc0\x80"])
def test_invalid_utf8_is_refused_with_file_and_offset(tmp_path: Path, bad: bytes) -> None:
    write(tmp_path, {"good.txt": b"good", "bad.txt": bad})
    with pytest.raises(DataError, match=r"bad\.txt is not valid UTF-8 at byte 3: .*expected"):
        read_corpus("text", tmp_path)


def test_what_cannot_be_read_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not set"):
        read_corpus("text", None)
    with pytest.raises(DataError, match="nowhere"):
        read_corpus("text", tmp_path / "nowhere")
    with pytest.raises(DataError, match="no files"):
        read_corpus("text", tmp_path)
    write(tmp_path, {"a": b"", "b": b""})
    with pytest.raises(DataError, match="all empty"):
        read_corpus("text", tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="link"):
        read_corpus("text", tmp_path)


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        read_corpus("text", tmp_path)


def test_digest_sees_names_contents_and_where_one_ends() -> None:
    def digest(*pairs: tuple[str, bytes]) -> str:
        return digest_documents([Document(name=n, content=c) for n, c in pairs])

    digests = [
        digest(("a", b"xy")),
        digest(("a", b"xz")),
        digest(("b", b"xy")),
        digest(("ax", b"y")),
        digest(("a", b"x"), ("", b"y")),
    ]
    assert len(set(digests)) == len(digests)


def test_split_is_by_whole_files_and_loses_none() -> None:
    corpus = corpus_of(*range(1, 200))
    split = split_corpus(corpus, seed=3, validation_bytes=1000)
    assert sorted(split.train + split.validation, key=lambda d: d.name) == list(corpus.documents)
    assert 1000 <= sum(len(d.content) for d in split.validation) < 2000


def test_split_depends_on_the_seed_and_on_nothing_else() -> None:
    corpus = corpus_of(*[10] * 100)
    first = split_corpus(corpus, seed=0, validation_bytes=200)
    assert first == split_corpus(corpus, seed=0, validation_bytes=200)
    assert first != split_corpus(corpus, seed=1, validation_bytes=200)


def test_a_document_keeps_its_side_when_others_come_and_go() -> None:
    corpus = corpus_of(*[10] * 100)
    held = split_corpus(corpus, seed=0, validation_bytes=200).validation
    fewer = Corpus(
        documents=tuple(d for d in corpus.documents if d in held or d.name < "050"),
        digest="",
        empty=(),
    )
    assert split_corpus(fewer, seed=0, validation_bytes=200).validation == held


def test_a_huge_file_is_held_back_only_when_it_must() -> None:
    split = split_corpus(corpus_of(10, 10, 100_000, 10), seed=0, validation_bytes=20)
    assert {len(d.content) for d in split.validation} == {10}
    split = split_corpus(corpus_of(30, 40), seed=0, validation_bytes=20)
    assert len(split.validation) == len(split.train) == 1


@pytest.mark.parametrize(
    ("sizes", "asked", "side"),
    [((50,), 10, "training"), ((5, 5), 10, "training"), ((5, 5), 0, "validation")],
)
def test_an_empty_side_is_refused(sizes: tuple[int, ...], asked: int, side: str) -> None:
    with pytest.raises(DataError, match=rf"no file is left for {side}.*try a"):
        split_corpus(corpus_of(*sizes), seed=0, validation_bytes=asked)

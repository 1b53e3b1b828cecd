"""A record is a document or a reason; what is bad stops a run, or is counted."""

import pytest

from weft.data.document import Document, Fields, Sieve, digest_documents, document_of
from weft.errors import DataError

PAIR = Fields(prompt="q", answer="a")


def test_text_and_pairs_are_taken_from_their_fields() -> None:
    assert document_of("n", {"text": "t", "x": 1}, Fields()) == Document(name="n", content=b"t")
    expected = Document(name="n", content=b"yes", prompt=b"why")
    assert document_of("n", {"q": "why", "a": "yes"}, PAIR) == expected


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "the record is list"),
        ({}, "no field 'text'"),
        ({"text": 3}, "'text' is int"),
        ({"text": None}, "'text' is NoneType"),
        ({"text": "\ud800"}, "surrogates"),
    ],
)
def test_a_record_without_text_is_refused_with_the_reason(record: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        document_of("n", record, Fields())


def test_a_huge_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.data.document.LONGEST_BYTES", 4)
    with pytest.raises(ValueError, match="5 bytes, at most 4"):
        document_of("n", {"text": "abcde"}, Fields())


def test_a_sieve_stops_or_counts() -> None:
    with pytest.raises(DataError, match="bad"):
        Sieve("stop").reject(DataError("bad"))
    sieve = Sieve("skip")
    sieve.reject(DataError("bad"))
    assert sieve.skipped == ["bad"]


def test_a_prompt_is_part_of_the_digest_and_not_to_be_confused_with_text() -> None:
    digests = {
        digest_documents([Document(name="n", content=b"ab")]),
        digest_documents([Document(name="n", content=b"b", prompt=b"a")]),
        digest_documents([Document(name="n", content=b"a", prompt=b"b")]),
        digest_documents([Document(name="n", content=b"a"), Document(name="b", content=b"")]),
    }
    assert len(digests) == 4

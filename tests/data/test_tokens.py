"""Bytes go in and come out unchanged; every document starts with END_OF_TEXT."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.data.tokens import END_OF_TEXT, VOCABULARY, decode, encode
from weft.errors import DataError

documents = st.lists(st.binary(max_size=20), min_size=1, max_size=10)


@given(documents)
def test_every_document_is_found_again_between_its_starts(texts: list[bytes]) -> None:
    stream = encode(texts)
    assert stream.num_documents == len(texts)
    assert stream.num_tokens == sum(map(len, texts)) + len(texts)
    stops = stream.begins + stream.lengths
    for text, start, stop in zip(texts, stream.begins, stops, strict=True):
        assert stream.tokens[start] == END_OF_TEXT
        assert bytes(stream.tokens[start + 1 : stop].tolist()) == text
    assert max(stream.tokens[:].tolist()) < VOCABULARY


@given(st.text())
def test_text_comes_back(text: str) -> None:
    assert decode(encode([text.encode()]).tokens[:]) == text


def test_bytes_that_are_no_text_do_not_stop_a_sample() -> None:
    assert decode([0xC3, 65, END_OF_TEXT, 0xFF]) == "\ufffdA\ufffd"


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(DataError, match=f"token {token} "):
        decode([65, token])

"""The trigram is a distribution, and counts what the model counts."""

import math
import time

import numpy as np
import pytest

from weft.data import ngram
from weft.data.corpus import read_corpus, split_corpus
from weft.data.tokens import END_OF_TEXT, VOCABULARY, encode


def literal_loss(training: list[bytes], validation: list[bytes]) -> float:
    """The same model written one token at a time with dictionaries."""

    def triples(texts: list[bytes]) -> list[tuple[int, int, int]]:
        rows = [[END_OF_TEXT, END_OF_TEXT, *text, END_OF_TEXT] for text in texts]
        return [t for row in rows for t in zip(row, row[1:], row[2:], strict=False)]

    seen = triples(training)

    def probability(context: tuple[int, ...], word: int) -> float:
        shorter = probability(context[1:], word) if context else 1 / VOCABULARY
        followed = [t[2] for t in seen if t[2 - len(context) : 2] == context]
        kinds = len(set(followed))
        if not followed:
            return shorter
        return (followed.count(word) + kinds * shorter) / (len(followed) + kinds)

    losses = [-math.log(probability(t[:2], t[2])) for t in triples(validation)]
    return sum(losses) / len(losses)


def test_loss_equals_the_literal_model() -> None:
    training = [b"abracadabra", b"abba", b"", b"cab"]
    validation = [b"abra", b"zebra", b"bb"]
    found = ngram.loss(ngram.fit(encode(training)), encode(validation))
    assert found == pytest.approx(literal_loss(training, validation), rel=1e-12)


def test_control_other_training_text_gives_another_loss() -> None:
    validation = encode([b"abra"])
    first = ngram.loss(ngram.fit(encode([b"abracadabra"])), validation)
    assert first != ngram.loss(ngram.fit(encode([b"abracadabrx"])), validation)


@pytest.mark.parametrize("context", [b"ab", b"ca", b"zz"])
def test_probabilities_of_what_may_follow_sum_to_one(context: bytes) -> None:
    trigram = ngram.fit(encode([b"abcabd", b"cab"]))

    bigram = trigram.counts.sum(axis=0)
    trigrams = trigram.counts.reshape(-1, VOCABULARY)
    words = np.arange(VOCABULARY)
    row = np.full(VOCABULARY, context[0] * VOCABULARY + context[1])
    shorter = ngram._interpolate(
        bigram, row % VOCABULARY, words, np.full(VOCABULARY, 1 / VOCABULARY)
    )
    p = ngram._interpolate(trigrams, row, words, shorter)
    assert p.sum() == pytest.approx(1)


def test_chunks_do_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = encode([bytes(range(65, 91)) * 3, b"xyz"])
    whole = ngram.fit(stream).counts
    loss = ngram.loss(ngram.fit(stream), stream)
    monkeypatch.setattr(ngram, "_CHUNK_TOKENS", 7)
    assert np.array_equal(whole, ngram.fit(stream).counts)
    assert ngram.loss(ngram.fit(stream), stream) == pytest.approx(loss, rel=1e-12)


def test_random_bytes_cost_the_entropy_of_a_byte() -> None:
    random = np.random.default_rng(0)
    texts = [random.integers(0, 256, 20_000, np.uint8).tobytes() for _ in range(2)]
    found = ngram.loss(ngram.fit(encode(texts[:1])), encode(texts[1:]))
    # A context seen with n different bytes leaves half to the shorter one; there are two to pass.
    assert math.log(256) < found < math.log(256) + 2 * math.log(2)


def test_standard_library_is_worth_less_than_two_nats_and_a_few_seconds() -> None:
    split = split_corpus(read_corpus("stdlib"), seed=0, validation_bytes=1 << 17)
    began = time.process_time()
    trigram = ngram.fit(encode([d.content for d in split.train]))
    found = ngram.loss(trigram, encode([d.content for d in split.validation]))
    assert time.process_time() - began < 5
    assert 1.4 < found < 2.1  # 1.77 with Python 3.11.7; it varies with the version

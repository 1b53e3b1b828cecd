"""Each token is predicted once an epoch, by the token before it, inside its own document."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.data.batches import IGNORED, Batches, MicroBatch, ValidationBatches
from weft.data.corpus import read_corpus, split_corpus
from weft.data.tokens import END_OF_TEXT, encode
from weft.errors import DataError

texts = st.lists(st.binary(max_size=12), min_size=1, max_size=8)


def assert_well_formed(batch: MicroBatch, *, sequence: int, micro_batch: int) -> None:
    """Fails unless positions, ends and targets agree with the tokens, one token at a time."""
    length = sequence * micro_batch
    assert len(batch.tokens) == len(batch.targets) == len(batch.positions) == length
    assert {a.dtype for a in (batch.tokens, batch.targets, batch.positions)} == {np.dtype(np.int64)}
    ends = []
    position = 0
    for place in range(length):
        starts = place % sequence == 0 or batch.tokens[place] == END_OF_TEXT
        if starts and place:
            ends.append(place)
        position = 0 if starts else position + 1
        assert batch.positions[place] == position
        follows = place % sequence < sequence - 1
        if follows and batch.targets[place] != IGNORED:
            assert batch.targets[place] == batch.tokens[place + 1]
    assert batch.ends == (*ends, length)
    assert batch.targets.min() >= IGNORED
    assert batch.targets.max() <= END_OF_TEXT


def counts(tokens: np.ndarray) -> list[int]:
    return np.bincount(tokens, minlength=END_OF_TEXT + 1).tolist()


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_an_epoch_predicts_every_token_once(contents, sequence, micro_batch, shares, seed) -> None:
    stream = encode(contents)
    batches = Batches(
        stream,
        sequence=sequence,
        global_batch=micro_batch * shares,
        micro_batch=micro_batch,
        seed=seed,
    )
    epochs = micro_batch * shares  # after that many epochs a step ends where an epoch does
    targets = []
    for step in range(batches.samples_per_epoch):
        step_targets = []
        for index in range(batches.num_micro_batches):
            batch = batches.load(step, index)
            assert_well_formed(batch, sequence=sequence, micro_batch=micro_batch)
            step_targets.append(batch.targets[batch.targets != IGNORED])
        targets += step_targets
        assert batches.divisor(step) == sum(map(len, step_targets))
    # Targets are the stream moved by one, so over an epoch they are the same multiset.
    assert counts(np.concatenate(targets)) == [epochs * c for c in counts(stream.tokens)]


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(1, 9), st.integers(1, 3), st.integers(1, 4))
def test_validation_counts_every_token_once_in_order(contents, sequence, micro_batch, dp) -> None:
    stream = encode(contents)
    batches = ValidationBatches(stream, sequence=sequence, micro_batch=micro_batch)
    number = batches.num_micro_batches(dp)
    assert number % dp == 0
    loaded = [batches.load(index) for index in range(number)]
    for batch in loaded:
        assert_well_formed(batch, sequence=sequence, micro_batch=micro_batch)
    targets = np.concatenate([batch.targets for batch in loaded])
    valid = targets[targets != IGNORED]
    assert len(valid) == batches.divisor
    assert valid.tolist() == [*stream.tokens[1:].tolist(), END_OF_TEXT]
    assert sum(len(batch.tokens) for batch in batches) >= batches.divisor


def test_control_a_target_that_is_the_token_itself_is_caught() -> None:
    batch = Batches(encode([b"abcdefg"]), sequence=4, global_batch=2, micro_batch=2, seed=0).load(
        0, 0
    )
    unshifted = MicroBatch(
        tokens=batch.tokens, targets=batch.tokens, positions=batch.positions, ends=batch.ends
    )
    with pytest.raises(AssertionError):
        assert_well_formed(unshifted, sequence=4, micro_batch=2)


def test_the_picture_of_the_module_is_what_is_cut() -> None:
    batches = ValidationBatches(encode([b"abc", b"de", b"fghi"]), sequence=4, micro_batch=3)
    batch = batches.load(0)
    assert batch.tokens.tolist() == [256, 97, 98, 99, 256, 100, 101, 256, 102, 103, 104, 105]
    assert batch.targets.tolist() == [97, 98, 99, 256, 100, 101, 256, 102, 103, 104, 105, 256]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 0, 1, 2, 3]
    assert batch.ends == (4, 7, 8, 12)


def test_filling_is_ignored_and_belongs_to_no_document() -> None:
    batch = ValidationBatches(encode([b"ab"]), sequence=5, micro_batch=2).load(0)
    assert batch.tokens.tolist() == [256, 97, 98, 256, 0, 0, 0, 0, 0, 0]
    assert batch.targets.tolist() == [97, 98, 256, *[IGNORED] * 7]
    assert batch.ends == (3, 5, 10)


def test_epochs_visited_out_of_order_are_the_same() -> None:
    def new() -> Batches:
        return Batches(encode([b"abc", b"defg"]), sequence=2, global_batch=5, micro_batch=5, seed=1)

    forward, backward = new(), new()
    ahead = [forward.load(step, 0).tokens.tolist() for step in range(20)]
    behind = [backward.load(step, 0).tokens.tolist() for step in reversed(range(20))]
    assert ahead == behind[::-1]
    assert len({tuple(tokens) for tokens in ahead}) > 10


def test_an_empty_stream_is_refused() -> None:
    empty = encode([])
    with pytest.raises(DataError, match="empty"):
        ValidationBatches(empty, sequence=4, micro_batch=1).num_micro_batches()


def test_the_standard_library_starts_and_steps_fast() -> None:
    began = time.process_time()
    split = split_corpus(read_corpus("stdlib"), seed=0, validation_bytes=1 << 17)
    stream = encode([document.content for document in split.train])
    batches = Batches(stream, sequence=256, global_batch=16, micro_batch=4, seed=0)
    batches.load(0, 0)
    assert time.process_time() - began < 1.5
    began = time.process_time()
    for step in range(20):
        batches.divisor(step)
        for index in range(batches.num_micro_batches):
            batches.load(step, index)
    assert (time.process_time() - began) / (20 * 16) < 1e-3

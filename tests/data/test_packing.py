"""Whole documents in samples: none is cut, none is lost, and every run packs alike."""

import numpy as np
import pytest

from weft.data.batches import IGNORED, Batches, ValidationBatches
from weft.data.packing import best_fit, cut
from weft.data.stream import TokenStream, join
from weft.errors import DataError

SEQUENCE = 32


def pairs(count: int = 40, longest: int = 20, seed: int = 0) -> TokenStream:
    """Documents of distinct tokens behind a prompt: a token says which document it is of."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, longest, count)
    pieces = [np.full(n, 2 + i, np.int64) for i, n in enumerate(lengths)]
    return join(pieces, [int(random.integers(1, n + 1)) for n in lengths], end_of_text=0)


def batches(stream: TokenStream, *, micro_batch: int = 2, packing="auto") -> Batches:
    return Batches(
        stream, sequence=SEQUENCE, global_batch=4, micro_batch=micro_batch, seed=3, packing=packing
    )


def samples(made: Batches, epochs: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """The samples of some epochs, in order."""
    found, steps = [], -(-made.samples_per_epoch * epochs // 4)
    for step in range(steps):
        for m in range(made.num_micro_batches):
            batch = made.load(step, m)
            rows = batch.tokens.reshape(-1, SEQUENCE), batch.targets.reshape(-1, SEQUENCE)
            found += list(zip(*rows, strict=True))
    return found[: made.samples_per_epoch * epochs]


@pytest.mark.parametrize("seed", range(20))
def test_every_document_is_in_one_sample_and_fits(seed):
    lengths = np.random.default_rng(seed).integers(1, 65, 300)
    packed = best_fit(lengths, 64)
    assert sorted(d for held in packed for d in held) == list(range(300))
    assert all(lengths[held].sum() <= 64 for held in packed)
    assert len(packed) <= np.ceil(11 / 9 * lengths.sum() / 64) + 4


def test_the_fullest_sample_with_room_is_taken():
    assert best_fit(np.array([6, 5, 3, 2, 2]), 8) == [[0, 3], [1, 2], [4]]


def test_documents_are_whole_once_an_epoch_and_in_no_other_way():
    stream = pairs()
    for tokens, _ in samples(batches(stream)):
        ids = [t for t in tokens.tolist() if t > 1]  # 1 fills up
        for token in set(ids):
            assert ids.count(token) >= stream.lengths[token - 2] - 1
    seen = np.concatenate([t for t, _ in samples(batches(stream))])
    assert all((seen == 2 + i).sum() >= n - 1 for i, n in enumerate(stream.lengths.tolist()))


def test_a_stream_cuts_some_of_the_same_documents():
    """The control: without packing, documents do cross the edges of samples."""
    stream = pairs()
    cuts = 0
    for tokens, _ in samples(batches(stream, packing="stream")):
        first = int(tokens[0])
        cuts += first > 0
    assert cuts > 0


def test_each_answer_is_asked_once_an_epoch_and_no_prompt_is():
    stream = pairs()
    made = batches(stream)
    targets = np.concatenate([t for _, t in samples(made)])
    asked = stream.num_targets
    assert (targets != IGNORED).sum() == asked
    counts = {d: int((targets == 2 + d).sum()) for d in range(stream.num_documents)}
    for document, (n, masked) in enumerate(
        zip(stream.lengths.tolist(), stream.masked.tolist(), strict=True)
    ):
        assert counts[document] == n - 1 - masked, document


def test_the_divisor_is_what_the_batches_ask():
    made = batches(pairs())
    for step in range(30):
        loaded = [made.load(step, m).targets for m in range(made.num_micro_batches)]
        assert made.divisor(step) == max(1, sum(int((t >= 0).sum()) for t in loaded))


def test_a_run_that_stops_anywhere_goes_on_with_the_same_samples():
    stream, whole = pairs(), batches(pairs())
    expected = [whole.load(step, 1).tokens for step in range(25)]
    for step in (24, 0, 13):  # out of order, by a reader that has seen nothing before
        assert np.array_equal(batches(stream).load(step, 1).tokens, expected[step])


def test_epochs_shuffle_the_same_samples():
    made = batches(pairs())
    count = made.samples_per_epoch
    rows = [tuple(tokens.tolist()) for tokens, _ in samples(made, epochs=2)]
    assert sorted(rows[:count]) == sorted(rows[count:])
    assert rows[:count] != rows[count:]


def test_the_size_of_a_micro_batch_moves_no_sample():
    stream = pairs()
    one, four = samples(batches(stream, micro_batch=1)), samples(batches(stream, micro_batch=4))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(one, four, strict=True))


def test_validation_asks_each_answer_once_too():
    stream = pairs()
    made = ValidationBatches(stream, sequence=SEQUENCE, micro_batch=3, packing="auto")
    targets = np.concatenate([batch.targets for batch in made])
    assert (targets != IGNORED).sum() == made.divisor == stream.num_targets
    beyond = made.load(made.num_micro_batches() + 1)
    assert (beyond.targets == IGNORED).all()


def test_a_document_longer_than_a_sample_is_refused_with_the_length_that_would_do():
    with pytest.raises(DataError, match=r"longest has 50 tokens.*data.sequence = 32.*= 50"):
        cut(pairs(longest=50, seed=4), sequence=SEQUENCE, packing="auto")


def test_text_without_prompts_is_cut_as_it_comes():
    plain = join([np.full(50, 1)], [0], end_of_text=0)
    assert not cut(plain, sequence=SEQUENCE, packing="auto").is_whole
    with pytest.raises(DataError, match="longer than a sample"):
        cut(plain, sequence=SEQUENCE, packing="whole")

"""The order of samples is one sequence, whatever the layout and wherever the run was stopped."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.data.batches import Batches
from weft.data.order import micro_batches, shuffled, step_positions
from weft.data.tokens import encode

MICRO_BATCH = 2
DEGREES = (1, 2, 3, 4)
STREAM = encode([bytes([65 + i]) * (7 * i + 3) for i in range(12)])


def new_batches(seed: int) -> Batches:
    return Batches(STREAM, sequence=5, global_batch=24, micro_batch=MICRO_BATCH, seed=seed)


def run_once(
    batches: Batches, steps: range, dp: int, share: Callable[..., range] = micro_batches
) -> list[tuple[int, int, int]]:
    """The samples that `dp` ranks train on in some steps, in global order."""
    trained = []
    for step in steps:
        samples = batches.samples(step)
        for dp_rank in range(dp):
            for index in share(batches.num_micro_batches, dp_rank=dp_rank, dp=dp):
                trained += samples[index * MICRO_BATCH : (index + 1) * MICRO_BATCH]
    return trained


def run_in_pieces(
    seed: int, pieces: list[tuple[int, int]], resume: Callable[[int], int]
) -> list[tuple[int, int, int]]:
    """The same with a stop after each piece (steps, dp), each resumed by a new process."""
    trained, done = [], 0
    for steps, dp in pieces:
        first = resume(done) if done else 0
        trained += run_once(new_batches(seed), range(first, first + steps), dp)
        done += steps
    return trained


def assert_one_order(seed: int, pieces: list[tuple[int, int]], resume: Callable[[int], int]) -> int:
    """Fails unless the run equals the unstopped one and has every sample once an epoch."""
    batches = new_batches(seed)
    trained = run_in_pieces(seed, pieces, resume)
    assert trained == run_once(batches, range(sum(steps for steps, _ in pieces)), dp=1)
    count = batches.samples_per_epoch
    epochs = [trained[i : i + count] for i in range(0, len(trained), count)]
    for number, epoch in enumerate(epochs):
        assert {e for _, e, _ in epoch} == {number}
        assert len(set(epoch)) == len(epoch)
    return len(pieces) - 1


pieces_of_a_run = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from(DEGREES)), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), pieces_of_a_run)
def test_any_layout_and_any_chain_of_resumes_train_one_sequence(seed, pieces) -> None:
    assert_one_order(seed, pieces, resume=lambda saved: saved)


@pytest.mark.parametrize("shift", [-1, 1])
def test_control_a_resume_off_by_one_step_is_caught(shift: int) -> None:
    with pytest.raises(AssertionError):
        assert_one_order(0, [(3, 2), (4, 4)], resume=lambda saved: saved + shift)


def test_control_a_rank_that_runs_the_share_of_another_is_caught() -> None:
    def swapped(number: int, *, dp_rank: int, dp: int) -> range:
        return micro_batches(number, dp_rank=dp - 1 - dp_rank, dp=dp)

    batches = new_batches(seed=0)
    right = run_once(batches, range(3), dp=2)
    assert right == run_once(batches, range(3), dp=4)
    assert right != run_once(batches, range(3), dp=2, share=swapped)


def test_loaded_micro_batches_are_the_listed_samples() -> None:
    batches = new_batches(seed=4)
    whole = Batches(STREAM, sequence=5, global_batch=1, micro_batch=1, seed=4)
    by_sample = {whole.samples(p)[0]: whole.load(p, 0) for p in range(100)}
    for step in range(4):
        for place, sample in enumerate(batches.samples(step)):
            loaded = batches.load(step, place // MICRO_BATCH)
            row = slice(place % MICRO_BATCH * 5, (place % MICRO_BATCH + 1) * 5)
            assert loaded.tokens[row].tolist() == by_sample[sample].tokens.tolist()
            assert loaded.targets[row].tolist() == by_sample[sample].targets.tolist()


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    orders = [
        tuple(shuffled(50, seed=seed, epoch=epoch, what=what).tolist())
        for seed in range(3)
        for epoch in range(3)
        for what in ("documents", "samples")
    ]
    assert len(set(orders)) == len(orders)
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(50))}


def test_shuffle_is_pinned_so_that_a_new_numpy_cannot_change_a_resumed_run() -> None:
    assert shuffled(8, seed=7, epoch=2, what="documents").tolist() == [0, 3, 5, 1, 4, 2, 6, 7]


def test_shares_of_the_ranks_are_consecutive_and_complete() -> None:
    shares = [list(micro_batches(12, dp_rank=r, dp=3)) for r in range(3)]
    assert np.concatenate(shares).tolist() == list(range(12))
    assert step_positions(2, global_batch=5) == range(10, 15)

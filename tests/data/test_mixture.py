"""Every stream of a mixture has its share of every stretch, each of its samples once an epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.data.batches import Batches
from weft.data.mixture import Mixture, draw_phases, turn, whole_weights
from weft.data.order import micro_batches
from weft.data.stream import join

weights = st.lists(st.integers(1, 50), min_size=1, max_size=5).map(tuple)


@settings(max_examples=60, deadline=None)
@given(weights, st.integers(0, 99), st.integers(0, 10**12))
def test_turns_are_counted_without_a_gap_from_any_position(w, seed, far) -> None:
    phases = draw_phases(w, seed=seed)
    for start in (0, far):
        turns = [turn(start + p, w, phases) for p in range(120)]
        for component in range(len(w)):
            indices = [index for c, index in turns if c == component]
            first = indices[0] if indices else 0
            assert indices == list(range(first, first + len(indices)))
            if start == 0:
                assert not indices or indices[0] == 0


@settings(max_examples=60, deadline=None)
@given(weights, st.integers(0, 99), st.integers(0, 400), st.integers(1, 300))
def test_every_stretch_has_its_proportions(w, seed, first, length) -> None:
    phases = draw_phases(w, seed=seed)
    found = Counter(turn(p, w, phases)[0] for p in range(first, first + length))
    for component, weight in enumerate(w):
        assert abs(found[component] - length * weight / sum(w)) <= len(w)


def test_weights_keep_their_proportions_and_are_never_nothing() -> None:
    assert whole_weights((1.0, 1.0)) == whole_weights((7.5, 7.5))
    assert min(whole_weights((1e-9, 1.0))) == 1


# ---- the order of a run -------------------------------------------------------------------------

MICRO = 2


def mixture() -> Mixture:
    streams = tuple(
        join(
            [np.full(5 * i + c + 2, c) for i in range(9)], [i % 3 for i in range(9)], end_of_text=9
        )
        for c in range(3)
    )
    return Mixture(streams=streams, weights=whole_weights((3.0, 2.0, 0.5)))


def batches(seed: int) -> Batches:
    return Batches(mixture(), sequence=6, global_batch=12, micro_batch=MICRO, seed=seed)


def run(seed, pieces, resume):
    """The samples and tokens of a run stopped after each (steps, dp), each resumed anew."""
    trained, done = [], 0
    for steps, dp in pieces:
        fresh = batches(seed)
        for step in range(resume(done) if done else 0, (resume(done) if done else 0) + steps):
            ids = fresh.samples(step)
            for rank in range(dp):
                for m in micro_batches(fresh.num_micro_batches, dp_rank=rank, dp=dp):
                    loaded = fresh.load(step, m).tokens.reshape(MICRO, -1).tolist()
                    trained += list(zip(ids[m * MICRO : (m + 1) * MICRO], loaded, strict=True))
        done += steps
    return trained


def check(seed, pieces, resume=lambda saved: saved) -> None:
    trained = run(seed, pieces, resume)
    assert trained == run(seed, [(sum(steps for steps, _ in pieces), 1)], lambda saved: saved)
    fresh = batches(seed)
    for component in range(3):
        own = [sample for (sample, _) in trained if sample[0] == component]
        count = fresh._components[component].num_samples
        for number in range(0, len(own), count):
            epoch = own[number : number + count]
            assert {e for _, e, _ in epoch} == {number // count}
            assert len(set(epoch)) == len(epoch)


pieces_of_a_run = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from((1, 2, 3, 6))), min_size=1, max_size=4
)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), pieces_of_a_run)
def test_any_layout_and_any_chain_of_resumes_train_one_order(seed, pieces) -> None:
    check(seed, pieces)


@pytest.mark.parametrize("shift", [-1, 1])
def test_control_a_resume_off_by_one_is_caught(shift: int) -> None:
    with pytest.raises(AssertionError):
        check(0, [(3, 2), (4, 3)], resume=lambda saved: saved + shift)


def test_the_divisor_of_a_mixture_is_what_its_batches_ask() -> None:
    some = batches(3)
    for step in range(12):
        loaded = [some.load(step, m).targets for m in range(some.num_micro_batches)]
        assert some.divisor(step) == sum(int((targets >= 0).sum()) for targets in loaded)


def test_components_of_equal_documents_are_shuffled_differently() -> None:
    stream = join([np.full(5, i) for i in range(30)], [0] * 30, end_of_text=99)
    both = Mixture(streams=(stream, stream), weights=(1, 1))
    samples = Batches(both, sequence=6, global_batch=60, micro_batch=60, seed=0).samples(0)
    orders = [[s for c, _, s in samples if c == component] for component in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))
    assert orders[0] != orders[1]

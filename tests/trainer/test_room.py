"""A bound that is met again and again is tried ever less often, and often again once it holds."""

from itertools import pairwise

from weft.trainer.room import MOST_STEPS, Room


def exact_steps(crowded: set[int], last: int) -> tuple[list[int], list[int]]:
    """The steps that overflowed and those that made room, of a run whose steps are so crowded."""
    room, overflowed, exact = Room(), [], []
    for step in range(1, last + 1):
        if step in crowded and not room.is_exact(step):
            room.overflowed(step)
            overflowed.append(step)
        if room.is_exact(step):
            exact.append(step)
    return overflowed, exact


def test_a_bound_that_holds_is_trusted():
    assert exact_steps(set(), 100) == ([], [])


def test_a_step_that_overflows_and_the_next_make_room():
    assert exact_steps({5}, 100) == ([5], [5, 6])


def test_uneven_routing_costs_ever_fewer_steps_twice():
    overflowed, exact = exact_steps(set(range(1, 10_001)), 10_000)
    assert overflowed[:5] == [1, 3, 6, 11, 20]
    assert len(overflowed) < 20
    assert len(exact) == 10_000


def test_tries_are_never_too_far_apart():
    overflowed, _ = exact_steps(set(range(1, 10_001)), 10_000)
    gaps = [b - a for a, b in pairwise(overflowed)]
    assert max(gaps) == MOST_STEPS + 1


def test_a_bound_that_held_for_long_is_trusted_again():
    crowded = set(range(1, 21))
    assert exact_steps(crowded | {5000}, 6000)[1][-2:] == [5000, 5001]
    assert exact_steps(crowded | {60}, 100)[1][-1] > 61

"""A check that could not have failed does not hold."""

from pathlib import Path

from weft.testing.chaos.result import Result, Size, add_up


def test_a_promise_holds_only_where_the_control_was_found() -> None:
    for faults, control, holds in (((), "seen", True), ((), "", False), (("a",), "seen", False)):
        result = Result(promise="R0", counts={"trials": 3}, faults=faults, control=control)
        assert result.holds is holds
        assert str(result).startswith("holds " if holds else "BROKEN ")


def test_sizes_lie_between_those_of_ci_and_the_full_ones() -> None:
    sizes = [Size(folder=Path(), scale=scale, seed=0).of(40, 500) for scale in (0, 0.5, 1)]
    assert sizes == [40, 270, 500]
    assert Size(folder=Path(), scale=1, seed=0, limit=7).of(40, 500) == 7


def test_shares_have_every_trial_once() -> None:
    for scale, shares in ((0, 1), (0, 3), (1, 7), (1, 100)):
        numbers = [
            n
            for share in range(shares)
            for n in Size(folder=Path(), scale=scale, seed=0, share=(share, shares)).trials(5, 60)
        ]
        assert numbers == list(range(60 if scale else 5))


def test_shares_add_up_and_each_has_to_find_its_control() -> None:
    def share(control: str, faults: tuple[str, ...] = ()) -> Result:
        return Result(
            promise="R0",
            counts={"trials": 10},
            faults=faults,
            control=control,
            peaks={"ms": len(faults)},
            allowed=0.5,
        )

    whole = add_up([share("seen"), share("seen", ("a",))])
    assert (whole.counts, whole.peaks) == ({"trials": 20}, {"ms": 1})
    assert whole.holds  # one of twenty is what is allowed
    assert not add_up([share("seen", ("a",)), share("seen", ("b",))]).holds
    assert not add_up([share("seen"), share("")]).holds

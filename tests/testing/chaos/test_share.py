"""A check in shares is the whole check."""

from weft.testing.chaos.result import add_up
from weft.testing.chaos.share import CHECKS, WHOLE, run_shares, shares_of


def test_shares_beside_each_other_are_the_whole_check() -> None:
    names = ("disk", "order")
    shares = [share for name in names for share in shares_of(name, scale=0, seed=5, jobs=2)]
    results = [add_up(found) for found in run_shares(shares, jobs=2)]
    assert [result.promise[:3] for result in results] == ["R5 ", "R12"]
    assert all(result.holds for result in results)
    (alone,) = run_shares(shares_of("order", scale=0, seed=5, jobs=1), jobs=1)
    assert results[1].counts == alone[0].counts


def test_what_is_not_divided_is_a_check() -> None:
    assert set(WHOLE) <= set(CHECKS)
    assert all(len(shares_of(name, scale=1, seed=0, jobs=9)) == 1 for name in WHOLE)

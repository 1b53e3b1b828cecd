from weft.planner import constants as subject


def test_at_most_twelve_constants_are_fitted_and_each_says_why():
    entries = subject.entries()
    assert sum(entry.fitted for entry in entries) <= 12
    assert all(len(entry.reason) > 20 for entry in entries)


def test_shares_are_shares_and_no_constant_is_negative():
    found = subject.constants()
    for name in ("product", "attention", "stream", "rows", "sums", "ring", "exchange", "direct"):
        assert 0 < getattr(found, name) <= 1, name
    assert all(entry.value >= 0 for entry in subject.entries())
    assert found.imbalance >= 1

"""A checkpoint goes on in another layout, and a swapped expert is found."""

import pytest

from weft.testing.chaos import reshape
from weft.testing.chaos.result import Size


def test_some_pairs_of_layouts(least: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: reshape.LAYOUTS[name] for name in ("sp2 ep2", "dp2 ep2")}
    monkeypatch.setattr(reshape, "LAYOUTS", some)
    result = reshape.check(least)
    assert result.holds, result
    assert result.counts["ordered pairs"] == 4

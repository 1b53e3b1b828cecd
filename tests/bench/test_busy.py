"""How much of a step nothing runs."""

import pytest

from weft.bench.busy import uncovered


@pytest.mark.parametrize(
    ("stretches", "share"),
    [
        ([], None),
        ([(0, 1)], 0.0),
        ([(0, 4), (1, 2), (2, 3), (4, 5)], 0.0),
        ([(6, 8), (0, 2)], 0.5),
        ([(0, 10), (1, 2), (12, 20), (15, 16)], 0.1),
    ],
)
def test_what_no_stretch_covers(stretches, share) -> None:
    assert uncovered(stretches) == pytest.approx(share)

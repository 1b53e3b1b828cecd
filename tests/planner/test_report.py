import pytest

from weft.planner.machine import machine
from weft.planner.report import fit_text, ratio, ratio_text, rows_text
from weft.planner.row import Key, Row
from weft.testing import models

KEY = Key("table3", "megascale", "internal-352b", "H800", 480, "strong", "iter_s")


@pytest.mark.parametrize(
    ("width", "bandwidth", "peak", "expected"),
    [(14336, 200e9, 989e12, 4.35), (14336, 50e9, 989e12, 1.09), (1408, 200e9, 989e12, 0.43),
     (14336, 450e9, 148e12, 65.4), (14336, 300e9, 312e12, 20.7)],
)  # fmt: skip
def test_the_scale_up_ratio_is_that_of_the_paper(width, bandwidth, peak, expected):
    assert ratio(width, bandwidth, peak) == pytest.approx(expected, rel=0.01)


def test_the_exact_ratio_counts_what_stays_at_home():
    assert ratio(14336, 200e9, 989e12, ranks=8) == pytest.approx(4.35 * 8 / 7, rel=0.01)


def test_a_link_of_no_bandwidth_hides_nothing():
    assert ratio(14336, 0.0, 989e12) == 0.0


def test_the_ratio_is_told_for_each_machine():
    text = ratio_text(models.large_mixtral().shape, [machine("H800"), machine("H20")])
    assert "H800" in text
    assert "H20" in text
    assert "4.35" in text


def test_rows_are_told_by_figure_with_their_errors():
    text = rows_text([
        Row(key=KEY, unit="s", predicted=11.0, published=10.0),
        Row(key=KEY, unit="s", predicted=3.0),
    ])  # fmt: skip
    assert text.startswith("table3")
    assert "+10.0%" in text


def test_a_fit_tells_its_median_and_its_largest_error():
    told = fit_text([Row(key=KEY, unit="s", predicted=11.0, published=10.0)], {"fig7": 0.05})
    assert "1 published rows: median error 10.0%, largest 10.0%" in told
    assert "fig7 5.0%" in told

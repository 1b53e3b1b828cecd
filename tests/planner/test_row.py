import pytest

from weft.planner.row import Key, Row, beside_published, fit, is_trivial, published

KEY = Key("table3", "megascale", "internal-352b", "H800", 1440, "strong", "iter_s")


def test_the_published_rows_are_those_of_the_calibration_and_no_others():
    figures = {key.figure for key in published()}
    assert figures == {"table3", "table5", "fig7", "fig13", "fig14", "fig16", "fig17"}
    assert {key.gpus for key in published() if key.figure == "table3"} == {480, 1440}
    assert {key.machine for key in published()} == {"H800"}
    assert {key.model for key in published()} == {"internal-352b", "mixtral-8x7b"}


def test_an_error_is_relative_and_none_where_nothing_was_published():
    assert Row(key=KEY, unit="s", predicted=11.0, published=10.0).error == pytest.approx(0.1)
    assert Row(key=KEY, unit="s", predicted=11.0).error is None


def test_a_row_finds_its_published_value():
    (row,) = beside_published([Row(key=KEY, unit="s", predicted=4.0)])
    assert row.published == 4.19


def test_a_record_has_every_field_of_a_row():
    assert set(Row(key=KEY, unit="s", predicted=1.0).record()) == {
        "figure", "system", "model", "machine", "gpus", "config", "metric",
        "unit", "predicted", "published", "error",
    }  # fmt: skip


def test_what_is_one_by_definition_does_not_flatter_the_fit():
    base = Key("table5", "megascale", "internal-352b", "H800", 240, "tp+tp", "throughput")
    trivial = Row(key=base, unit="x", predicted=1.0, published=1.0)
    wrong = Row(key=KEY, unit="s", predicted=20.0, published=10.0)
    assert is_trivial(trivial)
    assert fit([trivial, wrong]).median == pytest.approx(1.0)
    assert fit([]).rows == 0

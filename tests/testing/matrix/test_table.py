"""The table is long enough, says what it means, and asks for what exists."""

from pathlib import Path

import pytest

from weft.errors import ConfigError, LayoutError
from weft.testing.matrix.model import MODELS, recipe
from weft.testing.matrix.table import GLOO, STACKED, WORDS, every_row, row, rows

LEAST_STACKED, LEAST_GLOO = 48, 14


def test_the_table_is_as_long_as_it_is_meant_to_be() -> None:
    assert len(rows(STACKED)) >= LEAST_STACKED
    assert len(rows(GLOO)) >= LEAST_GLOO
    for table in (STACKED, GLOO):
        names = [found.name for found in rows(table)]
        assert len(set(names)) == len(names)


def test_every_word_and_model_is_in_a_row() -> None:
    words = {word for found in rows(STACKED) for word in found.name.split()}
    assert WORDS.keys() <= words
    assert {found.model for found in rows(STACKED)} == MODELS.keys()


def test_rows_exist_exactly_where_the_table_says_so(tmp_path: Path) -> None:
    for found in every_row():
        if found.exists:
            ranks = recipe(tmp_path, found.model, *found.overrides).parallel.ranks
            assert 2 <= ranks <= (4 if found.processes else 16), found.name
        else:
            with pytest.raises((ConfigError, LayoutError), match="nearest legal value"):
                recipe(tmp_path, found.model, *found.overrides)


def test_a_row_is_what_a_user_writes() -> None:
    assert row("dp2 sp4 ep2").overrides == ("parallel.dp=2", "parallel.sp=4", "parallel.ep=2")
    assert row("tied: tp2 bf16").overrides == (
        "parallel.sp=2", "parallel.attention=tp", "compression.gradients=bf16",
    )  # fmt: skip
    assert row("tied: tp2").model == "tied"


def test_a_word_that_is_in_no_table_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="is no word of the table"):
        row("sp2 allgather")

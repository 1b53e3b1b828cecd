"""A recipe of the command line is whole, and what was chosen for it is on stderr."""

import pytest

from weft.cli.settled import load_settled
from weft.planner.machine import machine

QUICKSTART = "recipes/quickstart.toml"


def test_a_choice_is_made_and_told_beside_the_output(capsys: pytest.CaptureFixture) -> None:
    config = load_settled(QUICKSTART, ["parallel.dispatch=auto"], machine("H100"))
    assert config.parallel.dispatch in ("all_to_all", "all_gather", "deduplicated")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f'parallel.dispatch = "auto": {config.parallel.dispatch}, ' in printed.err
    assert "on H100" in printed.err


def test_a_recipe_that_names_its_way_is_silent(capsys: pytest.CaptureFixture) -> None:
    assert load_settled(QUICKSTART).parallel.dispatch == "all_to_all"
    assert capsys.readouterr().err == ""

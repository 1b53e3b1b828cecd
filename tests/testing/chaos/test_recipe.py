"""The recipe that is broken is one that runs, in every layout."""

from pathlib import Path

from weft.testing.chaos.recipe import EVERY, LAYOUTS, STEPS, tiny


def test_every_layout_is_of_two_ranks_and_saves(tmp_path: Path) -> None:
    for settings in LAYOUTS.values():
        config = tiny(tmp_path, "run", *settings)
        assert config.parallel.ranks == 2
        assert (config.train.steps, config.train.checkpoint_every) == (STEPS, EVERY)

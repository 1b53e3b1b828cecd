"""Every measurement is a command of this tree, whose settings its recipe has."""

from pathlib import Path

import pytest
from bench_follow import RECIPE as FOLLOW
from bench_layouts import LAYOUTS, SHAPES
from measurement import MEASUREMENTS, ONE, RECIPES, TINY, TWO

from weft.compose.recipe import plan
from weft.config.load import build, load

ROOT = Path(__file__).parents[2]


def test_names_are_those_of_files() -> None:
    for many in (ONE, TWO):
        assert len({one.name for one in many}) == len(many)
    assert {one.gpus for one in ONE} == {1}
    assert {one.gpus for one in TWO} == {2}
    assert (*TWO, *ONE) == MEASUREMENTS


@pytest.mark.parametrize("one", MEASUREMENTS, ids=lambda one: f"{one.name} on {one.gpus}")
def test_a_measurement_is_a_command_of_this_tree(one) -> None:
    assert 0 < one.limit <= 300  # what can be had of a machine at once is minutes
    assert one.words[0] == "{python}"
    named = [word for word in one.words if "/" in word and "{" not in word]
    assert all((ROOT / word).exists() for word in named)
    if "weft" in one.words and any(word in RECIPES.values() for word in one.words):
        (recipe,) = (word for word in one.words if word in RECIPES.values())
        whole, small = load(ROOT / recipe, one.settings), load(ROOT / recipe, one.tiny)
        assert whole.parallel.ranks == one.gpus
        assert (whole.train.device, small.train.device) == ("cuda", "cpu")


def test_a_trial_is_the_same_command_with_what_makes_it_tiny_behind() -> None:
    for one in MEASUREMENTS:
        whole, trial = one.command("cuda"), one.command("cpu")
        assert whole[: len(one.words)] == trial[: len(one.words)] == one.words
        given = [word for word in trial[len(one.words) :] if "=" in word]
        assert tuple(given) == (*one.settings, *one.tiny)
        assert trial.count("--set") == (len(given) if one.flag else 0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_can_be_laid_out_whole_and_tiny(name) -> None:
    for tree in (FOLLOW, *SHAPES.values()):
        for settings in ((), TINY):
            made = plan(build(tree, (*settings, *LAYOUTS[name])), 1)
            assert made.layout.world == 2

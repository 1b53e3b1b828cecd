"""Every verb that takes a recipe takes overrides the same way."""

import inspect
from collections.abc import Callable

import pytest

from weft.cli import show, trace, train
from weft.cli.arguments import Overrides, Recipe

VERBS = (
    train.train,
    trace.trace,
    show.show_layer,
    show.show_program,
    show.show_schedule,
    show.show_layout,
)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_verb_takes_a_recipe_and_overrides(verb: Callable[..., None]) -> None:
    parameters = inspect.signature(verb).parameters
    assert parameters["recipe"].annotation == Recipe
    assert parameters["overrides"].annotation == Overrides
    assert parameters["overrides"].default is None

"""The tiny recipe of the system tests as a file."""

from tests.system.conftest import corpus, recipe, recipe_file

__all__ = ["corpus", "recipe", "recipe_file"]

"""`weft verify RECIPE`."""

from weft.cli.arguments import Overrides, Recipe


def verify(recipe: Recipe, overrides: Overrides = None) -> None:
    """Prove on this machine that every layout of a recipe computes what one rank computes."""

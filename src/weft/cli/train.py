"""`weft train RECIPE`: all ranks of a run here, or the one rank that torchrun describes."""

import os
from typing import Annotated

import typer

from weft.cli.arguments import Overrides, Recipe
from weft.config.load import load


def train(
    recipe: Recipe,
    nproc: Annotated[
        int | None, typer.Option(help="processes to start here; as many as the layout has ranks")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str,
        typer.Option(help="auto: from the newest good checkpoint; never; or a checkpoint folder"),
    ] = "auto",
) -> None:
    """Train a recipe; an interrupted run goes on where its last checkpoint is."""
    config = load(recipe, overrides or ())
    from weft.trainer import launch  # after the recipe is found good: torch takes seconds to import

    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        launch.join(config, os.environ, resume)
    else:
        launch.train(config, nproc=nproc, resume=resume)

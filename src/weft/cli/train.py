"""`weft train RECIPE`: all ranks of a run here, or the one that torchrun or Slurm started."""

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
    from weft.trainer import (
        cluster,
        launch,
    )  # after the recipe is found good: torch takes seconds to import

    member = cluster.found(os.environ)
    if member is not None:
        launch.join(config, member, resume)
    else:
        launch.train(config, nproc=nproc, resume=resume)

"""Arguments that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[str, typer.Argument(help="a recipe: a TOML file, see recipes/")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="override one value of the recipe, as in --set optim.lr=1e-3"),
]
RunFolder = Annotated[Path, typer.Argument(help="the folder of a run, its train.run_dir")]

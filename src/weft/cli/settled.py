"""Recipes of the command line with nothing left open: what was chosen, and why, goes to stderr."""

import typer

from weft.cli.arguments import Overrides
from weft.config.load import load
from weft.config.run import RunConfig
from weft.planner import dispatch
from weft.planner.cost import rates
from weft.planner.machine import Machine, nearest


def load_settled(
    recipe: str, overrides: Overrides = None, machine: Machine | None = None
) -> RunConfig:
    """The recipe as it is run on a machine, or on the usual one where none is named."""
    return settle(load(recipe, overrides or ()), machine or nearest(""))


def settle(config: RunConfig, machine: Machine) -> RunConfig:
    """The recipe as it is run on a machine."""
    settled = dispatch.settle(config, rates(machine, attention=config.kernels.attention))
    if settled.ways:
        typer.echo(dispatch.text(settled), err=True)
    return settled.config

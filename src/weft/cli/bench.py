"""`weft bench executor|step`."""

import typer

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)

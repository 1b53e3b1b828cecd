"""`weft diff schedule A B`: where two schedules differ. Needs no torch."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from weft.cli.settled import load_settled
from weft.compose.first import usual_of
from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.errors import ConfigError
from weft.schedule.render import render_actions
from weft.schedule.saved import compare

app = typer.Typer(help="Compare two of a kind.", no_args_is_help=True)

Schedule = Annotated[str, typer.Argument(help="a saved schedule, or a recipe (.toml)")]
DIFFERENT = 1


@app.command("schedule")
def diff_schedule(one: Schedule, other: Schedule) -> None:
    """The actions in which two schedules differ; exit code 1 where they do."""
    lines = list(compare(text_of(one), text_of(other)))
    print("\n".join(lines) if lines else "the same schedule")
    if lines:
        sys.exit(DIFFERENT)


@app.callback()
def _verb() -> None:
    """Compare two of a kind."""


def text_of(source: str) -> str:
    """A saved schedule as it is; the schedule of a recipe's first rank."""
    if source.endswith(".toml"):
        step = training_step(plan(load_settled(source), 0))
        usual = (ordered for name, ordered in step.templates.items() if name == usual_of(name))
        return "\n\n".join(map(render_actions, usual))
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{source}: cannot be read as a schedule ({error}); "
            "weft show schedule RECIPE --actions writes one"
        ) from None

"""`weft reproduce`: the figures of the paper's evaluation, predicted beside what was published."""

import json
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from weft.planner import report
from weft.planner.constants import entries
from weft.planner.cost import Rates, rates
from weft.planner.figures import rows
from weft.planner.fit import left_out
from weft.planner.machine import machine
from weft.planner.row import beside_published
from weft.planner.simulate import Studio


def reproduce(
    as_json: Annotated[bool, typer.Option("--json", help="one flat list of rows")] = False,
    plots: Annotated[Path | None, typer.Option(help="a folder for plots of the figures")] = None,
) -> None:
    """Predict the tables and figures of the paper from a few fitted constants."""

    @cache
    def found(name: str) -> Rates:
        return rates(machine(name))

    made = beside_published(rows(found, Studio()))
    if as_json:
        print(json.dumps([row.record() for row in made], indent=1))
    else:
        print(report.rows_text(made))
        print("\nconstants")
        for entry in entries():
            how = "fitted" if entry.fitted else "stated"
            print(f"  {entry.name:<11} {entry.value:<10.4g} {how}  {entry.reason}")
        print()
        print(report.fit_text(made, left_out()))
    if plots is not None:
        from weft.planner.picture import draw_figures  # matplotlib takes a second to import

        for path in draw_figures(made, plots):
            print(f"drawn: {path}")

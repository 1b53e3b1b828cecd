"""`weft status RUN`: where a run stands, from its folder alone."""

import time
from pathlib import Path
from typing import Annotated

import typer

from weft.cli.arguments import RunFolder
from weft.errors import CheckpointError
from weft.report.run import read_run
from weft.report.status import last_checkpoint, look, render

STALLED = 1


def status(
    run: RunFolder,
    stalled_after: Annotated[
        float | None,
        typer.Option(help="seconds without a line; by default a minute and five longest pauses"),
    ] = None,
) -> None:
    """Say where a run stands: step, loss, rate, time left, last checkpoint, age of the last line.

    Reads the folder alone, while the run goes on or afterwards, here or on another machine that
    shares it. The exit code is 0 for a run that goes on or has finished and 1 for one that has
    failed or stalled.
    """
    found = read_run(run)
    from weft.checkpoint.prune import list_checkpoints  # needs torch: only for a folder with a run

    checkpoint = last_checkpoint(list_checkpoints(run), _fault)
    seen = look(found, checkpoint, now=time.time(), stalled_after=stalled_after)
    print(render(seen))
    if not seen.alive:
        raise typer.Exit(STALLED)


def _fault(folder: Path) -> str:
    """What a quick look at a checkpoint finds wrong: manifest and sizes, no digest of the bytes."""
    from weft.checkpoint.verify import verify_structure

    try:
        verify_structure(folder)
    except CheckpointError as error:
        return str(error)
    return ""

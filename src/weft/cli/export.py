"""`weft export RUN FOLDER`: what a run has learned, as a Hugging Face checkpoint."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from weft.cli.arguments import RunFolder
from weft.errors import CheckpointError
from weft.report.run import read_run


def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="where to write it; must not exist")],
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="the dtype of the written weights")
    ] = "bfloat16",
    shard_gb: Annotated[float, typer.Option(help="the most gigabytes of a file", min=1e-6)] = 5.0,
) -> None:
    """Write the newest good checkpoint of a run: safetensors, config.json, its tokenizer."""
    read_run(run)
    from weft.checkpoint.hf.write import export_checkpoint  # torch takes seconds to import
    from weft.checkpoint.load import find_latest

    source = find_latest(run, report=_say)
    if source is None:
        raise CheckpointError(
            f"{run} has no checkpoint; expected one to export; train with train.checkpoint_every"
        )
    size = int(shard_gb * 1e9)
    made = export_checkpoint(source, folder, dtype=dtype, shard_bytes=size, report=_say)
    print(f"{made}, from {source}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)

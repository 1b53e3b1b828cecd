"""`weft ckpt`: what a checkpoint says of itself, whether it is whole, and other forms of it."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Look at checkpoints: inspect, verify, convert.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="a checkpoint, or the run whose newest is meant")]


@app.command("inspect")
def inspect(folder: Folder) -> None:
    """Say what a checkpoint holds, from its manifest alone."""
    from weft.checkpoint.convert import describe
    from weft.checkpoint.verify import read_manifest

    checkpoint = _newest(folder)
    print(describe(checkpoint, read_manifest(checkpoint)))


@app.command("verify")
def verify(folder: Folder) -> None:
    """Read every byte of a checkpoint, or of all of a run; exit with 1 if one is bad."""
    from weft.checkpoint.prune import list_checkpoints
    from weft.checkpoint.verify import verify as check
    from weft.errors import CheckpointError

    bad = 0
    found = [folder] if _is_checkpoint(folder) else list_checkpoints(folder)
    if not found:
        raise CheckpointError(
            f"{folder} holds no checkpoint; expected a folder like step-00000100, or a run"
        )
    for checkpoint in found:
        try:
            manifest = check(checkpoint)
        except CheckpointError as error:
            bad += 1
            print(f"BAD   {error}")
        else:
            experts = f"{len(manifest.fingerprints)} experts"
            print(f"good  {checkpoint}: {len(manifest.files)} file(s), {experts}")
    if bad:
        raise typer.Exit(1)


@app.command("convert")
def convert(
    folder: Folder,
    target: Annotated[Path, typer.Argument(help="the folder to write to")],
    to: Annotated[
        Literal["weft", "hf"], typer.Option(help="weft: the same in other files; hf: Hugging Face")
    ] = "weft",
    shards: Annotated[int, typer.Option(min=1, help="shard files, for weft")] = 1,
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="the dtype of weights, for hf")
    ] = "bfloat16",
) -> None:
    """Write a checkpoint again in another number of shard files, or for Hugging Face."""
    checkpoint = _newest(folder)
    if to == "hf":
        from weft.checkpoint.hf.write import export_checkpoint

        made = export_checkpoint(checkpoint, target, dtype=dtype, report=_say)
        print(f"{made}, from {checkpoint}")
        return
    from weft.checkpoint.convert import convert as cut

    print(f"{cut(checkpoint, target, shards=shards)}, from {checkpoint}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _newest(folder: Path) -> Path:
    """The checkpoint itself, or the newest of a run, good or not: somebody may want to look."""
    from weft.checkpoint.prune import list_checkpoints

    return folder if _is_checkpoint(folder) else next(iter(list_checkpoints(folder)), folder)


def _is_checkpoint(folder: Path) -> bool:
    from weft.checkpoint.format import MANIFEST

    return (folder / MANIFEST).exists()

"""`weft generate RUN --prompt TEXT`: what a run has learned so far, on one rank."""

import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from weft.cli.arguments import RunFolder
from weft.config.load import load
from weft.errors import CheckpointError
from weft.report.run import read_run


def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Option(help="the text to continue")],
    count: Annotated[int, typer.Option("--bytes", min=1, help="how many bytes to add")] = 400,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="below 1 plays it safe; 0 takes the likeliest byte")
    ] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="another one gives another text")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Continue a text with the newest good checkpoint of a run; works while it goes on."""
    read_run(run)
    config = load(run / "config.toml")
    from weft.checkpoint.load import find_latest  # after the run is found: torch takes seconds
    from weft.data.tokenizer import open_tokenizer
    from weft.runtime.backends import pick_device, prepare
    from weft.trainer.sample import grow, load_oracle

    folder = find_latest(run, report=_say)
    if folder is None:
        raise CheckpointError(
            f"{run} has no checkpoint yet; expected one every {config.train.checkpoint_every} "
            "steps (train.checkpoint_every); wait for the first"
        )
    where = pick_device(device, 0)
    prepare(where, threads=config.train.threads, neighbours=1)
    oracle = load_oracle(config, folder, where)
    _say(f"from {folder}")
    texts = grow(
        oracle,
        prompt.encode(),
        count=count,
        seed=seed,
        device=where,
        tokenizer=open_tokenizer(config.data.tokenizer),
        temperature=temperature,
    )
    _print_as_it_grows(texts)


def _print_as_it_grows(texts: Iterable[str]) -> None:
    """Each piece as soon as it is there; half a character waits for its other half."""
    shown = text = ""
    for text in texts:
        whole = text.rstrip("\ufffd")
        if whole.startswith(shown):
            print(whole[len(shown) :], end="", flush=True)
            shown = whole
    print(text[len(shown) :])


def _say(text: str) -> None:
    """Beside the text, not in it: only what was generated goes to stdout."""
    print(text, file=sys.stderr)

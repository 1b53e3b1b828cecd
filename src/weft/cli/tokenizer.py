"""`weft tokenizer train`: a vocabulary of the user's own text."""

from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.data import PathOption, SourceOption, described
from weft.errors import ConfigError

app = typer.Typer(help="Train a tokenizer.", no_args_is_help=True)

_MOST_BYTES = 1 << 28  # a vocabulary of thousands has settled long before


@app.callback()
def tokenizer() -> None:
    """Keeps `train` a verb of its own while it is the only one."""


@app.command("train")
def train(
    out: Annotated[Path, typer.Option(help="the tokenizer.json to write")],
    source: SourceOption = None,
    path: PathOption = None,
    vocab: Annotated[
        int, typer.Option(help="ids, those of bytes and end of text among them")
    ] = 8192,
    text_field: Annotated[str | None, typer.Option(help="the field with the text")] = None,
) -> None:
    """Learn byte-level pairs from a text; any text can be written in them, and read back."""
    flags: dict[str, Any] = {"source": source, "path": path, "text_field": text_field}
    data = described(None, None, {k: v for k, v in flags.items() if v is not None})
    from weft.data.corpus import texts
    from weft.data.document import Fields
    from weft.data.prepared.manifest import write_whole
    from weft.data.tokenizer import train_tokenizer

    if data.source == "prepared" or data.source == "megatron":  # noqa: PLR1714 (types)
        raise ConfigError(
            f"--source {data.source}: is tokens already; expected text; try --source jsonl"
        )
    read = texts(
        data.source, data.path, fields=Fields(text=data.text_field), most_bytes=_MOST_BYTES
    )
    trained = train_tokenizer(read, vocab=vocab)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, trained.content.encode())
    typer.echo(f'{out}: {trained.size:,} ids; use it with data.tokenizer = "{out}"')

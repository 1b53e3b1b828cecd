"""`weft data prepare|verify`: text to shards of tokens, once, and whether they are still whole."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.arguments import Overrides
from weft.config.data import DataConfig
from weft.config.load import load
from weft.errors import ConfigError, DataError

app = typer.Typer(help="Prepare a corpus for training, or check one.", no_args_is_help=True)

_TEXTS = ("stdlib", "text", "jsonl", "parquet", "hugging_face")

Folder = Annotated[Path, typer.Argument(help="a prepared folder")]
Out = Annotated[Path, typer.Option(help="the folder to write; a stopped one goes on")]
SourceOption = Annotated[str | None, typer.Option(help="one of " + ", ".join(_TEXTS))]
PathOption = Annotated[str | None, typer.Option(help="the file or folder of the source")]


@app.command("prepare")
def prepare(
    out: Out,
    recipe: Annotated[str | None, typer.Argument(help="a recipe; its [data] is prepared")] = None,
    source: SourceOption = None,
    path: PathOption = None,
    tokenizer: Annotated[str | None, typer.Option(help='"bytes" or a tokenizer.json')] = None,
    text_field: Annotated[str | None, typer.Option(help="the field with the text")] = None,
    prompt_field: Annotated[str | None, typer.Option(help="the field with the prompt")] = None,
    answer_field: Annotated[str | None, typer.Option(help="the field with the answer")] = None,
    on_bad: Annotated[str | None, typer.Option(help="stop or skip at a bad document")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes; one a core")] = None,
    overrides: Overrides = None,
) -> None:
    """Tokenize a corpus into shards that training maps into memory."""
    flags = {
        "source": source,
        "path": path,
        "tokenizer": tokenizer,
        "text_field": text_field,
        "prompt_field": prompt_field,
        "answer_field": answer_field,
        "on_bad": on_bad,
    }
    data = described(recipe, overrides, {k: v for k, v in flags.items() if v is not None})
    from weft.data.document import Fields
    from weft.data.prepared.prepare import Request
    from weft.data.prepared.prepare import prepare as run

    if data.mix or data.source == "prepared" or data.source == "megatron":  # noqa: PLR1714 (types)
        found = "a mixture" if data.mix else data.source
        raise ConfigError(
            f"data.source: found {found}, which is not one text; expected one of "
            f"{', '.join(_TEXTS)}; try --source and --path, a folder for each text"
        )
    request = Request(
        source=data.source,
        path=data.path,
        fields=Fields(text=data.text_field, prompt=data.prompt_field, answer=data.answer_field),
        tokenizer=data.tokenizer,
        on_bad=data.on_bad,
    )
    manifest = run(request, out, workers=workers or os.cpu_count() or 1, report=typer.echo)
    tokens = sum(shard.num_tokens for shard in manifest.shards)
    skipped = sum(shard.num_skipped for shard in manifest.shards)
    typer.echo(f"{out}: {tokens:,} tokens in {len(manifest.shards)} shards, {skipped:,} skipped")
    copy = "bytes" if manifest.tokenizer == "bytes" else out / manifest.tokenizer
    typer.echo(
        f'train from it with data.source = "prepared", data.path = "{out}", '
        f'data.tokenizer = "{copy}", model.vocab = {manifest.vocabulary} or more'
    )


@app.command("verify")
def verify(folder: Folder) -> None:
    """Read a prepared folder whole and compare every checksum."""
    from weft.data.prepared.store import verify_prepared

    manifest = verify_prepared(folder)
    tokens = sum(shard.num_tokens for shard in manifest.shards)
    typer.echo(f"{folder}: {len(manifest.shards)} shards of {tokens:,} tokens are whole")


def described(recipe: str | None, overrides: list[str] | None, flags: dict[str, Any]) -> DataConfig:
    """The data of a recipe with flags in it, or of flags alone.

    Raises:
        ConfigError: neither says which text, or they do not go together.
        DataError: overrides were given without a recipe.
    """
    if recipe is None and overrides:
        raise DataError("--set needs a recipe to change; expected RECIPE; try --source and --path")
    if recipe is None and "source" not in flags:
        raise ConfigError("--source: missing; expected a recipe or a source; try --source jsonl")
    base = load(recipe, overrides or ()).data.model_dump() if recipe else {"sequence": 1}
    return DataConfig.model_validate({**base, **flags})

"""What a prepared folder says of itself: its shards, and the text and tokenizer behind them.

manifest.json        written last: a folder without it is not prepared yet
plan.json            what is to be prepared, written first
tokenizer.json       a copy, where the tokenizer is a file
shard-00000.bin      tokens, every document started by the end of text
shard-00000.idx      lengths and masked prefixes of documents, checksums of the tokens
shard-00000.json     counts and digests, written when the other two are on the disk
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from weft.errors import DataError

MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One shard: its counts, what its text was, and what its files must be."""

    name: str
    num_documents: int
    num_tokens: int
    num_bytes: int
    num_empty: int
    num_skipped: int
    first_skipped: str
    max_token: int
    bin_bytes: int
    idx_bytes: int
    idx_crc32: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A prepared corpus."""

    version: int
    tokenizer: str
    tokenizer_digest: str
    vocabulary: int
    end_of_text: int
    token_bytes: int
    digest: str
    shards: tuple[Shard, ...]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes a manifest whole or not at all."""
    write_whole(folder / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder.

    Raises:
        DataError: there is none, or it is not one.
    """
    path = folder / MANIFEST
    content = read_json(path, "try weft data prepare; if it was stopped, it goes on")
    shards = content.get("shards")
    if not isinstance(shards, list):
        raise _malformed(path, f"shards = {shards!r}, expected a list")
    manifest = _record(
        Manifest, {**content, "shards": tuple(_record(Shard, s, path) for s in shards)}, path
    )
    if manifest.version != VERSION or manifest.token_bytes not in {2, 4}:
        found = f"version {manifest.version} with {manifest.token_bytes}-byte tokens"
        raise _malformed(path, f"{found}, expected version {VERSION} with 2 or 4")
    return manifest


def read_shard(path: Path) -> Shard:
    """The record of one shard."""
    return _record(Shard, read_json(path, "prepare the corpus anew"), path)


def read_json(path: Path, trial: str) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; expected a prepared corpus; {trial}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"not JSON ({error})") from None
    if not isinstance(content, dict):
        raise _malformed(path, f"{type(content).__name__}, expected an object")
    return content


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that after a crash it is there whole, or not at all."""
    aside = path.with_name(path.name + ".partial")
    with aside.open("wb") as file:
        file.write(content)
        sync_file(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def sync_file(descriptor: int) -> None:
    """Returns when what was written is on the disk."""
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _record(kind: type[Any], content: object, path: Path) -> Any:
    """A dataclass from an object that has its fields, of their types, and no others."""
    if not isinstance(content, Mapping):
        raise _malformed(path, f"{type(content).__name__}, expected an object")
    hints = get_type_hints(kind)
    names = {field.name for field in fields(kind)}
    if set(content) != names:
        raise _malformed(path, f"the keys {sorted(set(content) ^ names)} are missing or unknown")
    for name in names - {"shards"}:
        value = content[name]
        if type(value) is not hints[name] or (isinstance(value, int) and value < 0):
            raise _malformed(path, f"{name} = {value!r}, expected {hints[name].__name__}")
    name = content.get("name", "")
    if "/" in name or name.startswith("."):
        raise _malformed(path, f"name = {name!r} leads out of the folder")
    return kind(**content)


def _malformed(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is no record of a prepared corpus: {reason}; prepare the corpus anew")

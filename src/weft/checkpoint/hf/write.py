"""Writing a Hugging Face checkpoint in the layout that every reader knows, expert by expert.

Files are filled in order of use up to `shard_bytes`; more than one get an index. One tensor is in
memory at a time. Everything goes to `folder.partial`, which takes its name when it is whole.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial as partial_of
from pathlib import Path
from types import MappingProxyType
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from weft.checkpoint.durable import sync_file, sync_folder, write_durably
from weft.checkpoint.hf.carry import carried_files, carried_keys
from weft.checkpoint.hf.config import Report, write_config
from weft.checkpoint.hf.dialect import Entry, entries, numel
from weft.checkpoint.hf.read import CONFIG, INDEX, SINGLE
from weft.checkpoint.hf.stream import Spec, write_stream
from weft.checkpoint.load import Checkpoint
from weft.config.model import ModelConfig
from weft.errors import CheckpointError, ConfigError
from weft.model.params import Logical

Read = Callable[[Logical], Tensor]
_NOTHING: Mapping[str, Path] = MappingProxyType({})
SHARD_BYTES = 5_000_000_000  # what save_pretrained of transformers 4 took; fits every file system
DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def export(
    folder: Path,
    model: ModelConfig,
    read: Read,
    *,
    dtype: str = "bfloat16",
    also: Mapping[str, object] | None = None,
    files: Mapping[str, Path] = _NOTHING,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes a model whose logical parameters `read` gives, and returns the folder.

    `also` is what `config.json` shall say beyond the model: the longest sequence, special tokens.
    `files` are copied along, under the names they have here: a tokenizer's.

    Numerics:
        Values are rounded once to `dtype`, biases of routers to no less than float32.

    Raises:
        ConfigError: no Hugging Face configuration fits the model, or `also` contradicts it.
        CheckpointError: the folder exists or cannot be written, or a value is not finite.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists; expected a new folder; export to another one")
    dialect, config = write_config(model)
    config = _completed(config, dtype, also or {})
    held = _by_tensor(entries(dialect, model))
    shards = _shards(held, DTYPES[dtype], shard_bytes)
    partial = folder.with_name(folder.name + ".partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        for file, names in shards.items():
            specs = {disk: _spec(held[disk], model, DTYPES[dtype]) for disk in names}
            make = partial_of(_whole, held, model, read, DTYPES[dtype])
            write_stream(partial / file, specs, make)
            sync_file(partial / file)
        for name, source in files.items():
            shutil.copyfile(source, partial / name)
            sync_file(partial / name)
        if len(shards) > 1:
            write_durably(partial / INDEX, _encoded(_index(shards, held, DTYPES[dtype])))
        write_durably(partial / CONFIG, _encoded(config))
        sync_folder(partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder}: {error}; expected room for the model; try another folder"
        ) from None
    return folder


def export_checkpoint(
    source: Path,
    folder: Path,
    *,
    dtype: str = "bfloat16",
    also: Mapping[str, object] | None = None,
    shard_bytes: int = SHARD_BYTES,
    report: Report = warn,
) -> Path:
    """Writes the master weights of a checkpoint of weft as a Hugging Face one; returns the folder.

    The tokenizer of the run goes along, and what the `config.json` it began from says beside the
    model; a file that is gone is reported.

    Raises:
        ConfigError: no Hugging Face configuration fits the model.
        CheckpointError: the source is not good, or the folder exists or cannot be written.
    """
    with Checkpoint.open(source) as checkpoint:
        recipe = checkpoint.manifest.config
        model = ModelConfig.model_validate(recipe.get("model"))
        data = recipe.get("data")
        longest = data.get("sequence") if isinstance(data, dict) else None  # trained on no longer
        first = carried_keys(recipe, write_config(model)[1], report=report)
        told = {"max_position_embeddings": longest, **first, **(also or {})}

        def read(part: Logical) -> Tensor:
            kind = "state" if part.name.endswith(".router_bias") else "master"
            return checkpoint.read(kind, part.name).view(part.shape)

        files = carried_files(recipe, report=report)
        return export(
            folder, model, read, dtype=dtype, also=told, files=files, shard_bytes=shard_bytes
        )


def _completed(config: dict[str, Any], dtype: str, also: Mapping[str, object]) -> dict[str, Any]:
    """The config and what the caller adds; a token id left out would come back as a default."""
    free = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    whole = {**free, **config, "torch_dtype": dtype}
    for key, value in also.items():
        if key not in free and key in whole and whole[key] != value:
            raise ConfigError(
                f"config.json: {key} = {value!r} was asked for, but the model says {whole[key]!r}; "
                "expected keys that the model does not determine; leave it out"
            )
    return {**whole, **also}


def _by_tensor(found: Iterable[Entry]) -> dict[str, list[Entry]]:
    """The parameters of each tensor on the disk, in order of use."""
    held: dict[str, list[Entry]] = {}
    for entry in found:
        held.setdefault(entry.disk, []).append(entry)
    return held


def _shards(
    held: Mapping[str, list[Entry]], dtype: torch.dtype, shard_bytes: int
) -> dict[str, list[str]]:
    """The tensors of each file: in order, until the next one would not fit."""
    groups: list[list[str]] = [[]]
    filled = 0
    for disk, parts in held.items():
        size = _bytes(parts, dtype)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(disk)
        filled += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {
        f"model-{i:05d}-of-{len(groups):05d}.safetensors": g for i, g in enumerate(groups, start=1)
    }


def _spec(parts: list[Entry], model: ModelConfig, dtype: torch.dtype) -> Spec:
    return Spec(shape=parts[0].size(model.experts), dtype=_dtype(parts[0], dtype))


def _whole(
    held: Mapping[str, list[Entry]], model: ModelConfig, read: Read, dtype: torch.dtype, disk: str
) -> Tensor:
    """A tensor as it is on the disk: one parameter, or those of all experts, each in its place."""
    parts = held[disk]
    first = parts[0]
    if first.packed is None:
        return _converted(first, read(first.part), dtype)
    whole = torch.empty(first.size(model.experts), dtype=_dtype(first, dtype))
    for entry in parts:
        entry.of(whole[entry.expert]).copy_(_converted(entry, read(entry.part), dtype))
    return whole


def _converted(entry: Entry, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as it is written: a copy, so that no two share memory."""
    if tuple(tensor.shape) != entry.part.shape:
        raise CheckpointError(
            f"{entry.part.name} was given in shape {list(tensor.shape)}; expected "
            f"{list(entry.part.shape)}; export the model it belongs to"
        )
    made = tensor.detach().to("cpu", _dtype(entry, dtype), copy=True).contiguous()
    if not made.isfinite().all():
        raise CheckpointError(
            f"{entry.part.name} is not finite in {dtype}; expected numbers; try a wider dtype or "
            "an older checkpoint"
        )
    return made


def _dtype(entry: Entry, dtype: torch.dtype) -> torch.dtype:
    steers = entry.part.name.endswith(".router_bias")
    return torch.promote_types(dtype, torch.float32) if steers else dtype


def _bytes(parts: Iterable[Entry], dtype: torch.dtype) -> int:
    return sum(numel(entry.part) * _dtype(entry, dtype).itemsize for entry in parts)


def _index(
    shards: Mapping[str, list[str]], held: Mapping[str, list[Entry]], dtype: torch.dtype
) -> dict[str, Any]:
    total = sum(_bytes(parts, dtype) for parts in held.values())
    where = {disk: file for file, names in shards.items() for disk in names}
    return {"metadata": {"total_size": total}, "weight_map": where}


def _encoded(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"

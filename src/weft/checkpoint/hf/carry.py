"""What goes along with exported weights: the tokenizer's files, and meaningless keys.

They are those of the run: the files of the folder of its `data.tokenizer`, and the keys that change
no logit of the `config.json` that it began from (`train.init_from`). What has meanwhile gone is
reported, and the export goes on without it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from weft.checkpoint.hf.config import Json, Report
from weft.checkpoint.hf.read import CONFIG

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
# What the classes of transformers look for beside weights.
TOKENIZER_FILES = (
    SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
GENERATION = "generation_config.json"
# Keys of another file that are the exporter's own to say, or that its weights would contradict.
_OWN = frozenset({
    "_name_or_path", "architectures", "auto_map", "dtype", "layer_types", "model_type",
    "quantization_config", "rope_parameters", "rope_scaling", "sliding_window", "torch_dtype",
    "transformers_version", "max_window_layers", "use_sliding_window",
})  # fmt: skip


def carried_files(recipe: Json, *, report: Report) -> Mapping[str, Path]:
    """The files to copy, by the names that they get."""
    found: dict[str, Path] = {}
    named = _table(recipe, "data").get("tokenizer", "bytes")
    if named == "bytes":
        report("the run read bytes: there is no tokenizer to carry along; token 256 ends a text")
    else:
        found[TOKENIZER] = Path(str(named))
        found.update({name: found[TOKENIZER].parent / name for name in TOKENIZER_FILES})
    start = _table(recipe, "train").get("init_from")
    if start is not None:
        found[GENERATION] = Path(str(start)) / GENERATION
    if TOKENIZER in found and not found[TOKENIZER].is_file():
        report(f"{found[TOKENIZER]} is gone; expected the tokenizer of the run; copy it by hand")
    return MappingProxyType({name: path for name, path in found.items() if path.is_file()})


def carried_keys(recipe: Json, written: Json, *, report: Report) -> dict[str, Any]:
    """Keys of the first `config.json` that the model does not determine: token ids and the like."""
    start = _table(recipe, "train").get("init_from")
    if start is None:
        return {}
    path = Path(str(start)) / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        report(f"{path} cannot be read ({error}); expected the config.json that the run began from")
        return {}
    return {k: v for k, v in config.items() if k not in _OWN and k not in written}


def _table(recipe: Json, name: str) -> Mapping[str, Any]:
    found = recipe.get(name)
    return found if isinstance(found, dict) else {}

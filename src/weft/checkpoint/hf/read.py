"""Reading a Hugging Face checkpoint: one tensor at a time, each of them used exactly once.

    folder/config.json
    folder/model.safetensors                                      a checkpoint of one file, or
    folder/model.safetensors.index.json, model-00001-of-N...      of several

What the files hold is compared with what the model needs by names, shapes and dtypes when the
folder is opened, before a tensor is read. Pickles are never opened.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self
from warnings import warn

from safetensors import SafetensorError, safe_open
from torch import Tensor

from weft.checkpoint.hf.config import Report, read_config
from weft.checkpoint.hf.dialect import Dialect, Entry, entries, router_bias
from weft.compose.plan import Plan
from weft.compose.recipe import arithmetic, shape
from weft.config.branch import closest_name
from weft.config.model import ModelConfig
from weft.errors import CheckpointError
from weft.runtime.state import State, fill, precision

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
READABLE = ("F64", "F32", "BF16", "F16")  # safetensors' names; anything else is quantised

Shape = tuple[int, ...]


class Named(Protocol):
    """A logical parameter, or a piece of one."""

    @property
    def name(self) -> str: ...


class Pretrained:
    """A checkpoint opened for reading: its model, its `config.json`, its tensors by logical name.

    Example:
        with open_pretrained(folder) as pretrained:
            load(state, pretrained)
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: ModelConfig,
        config: Mapping[str, Any],
        places: Mapping[str, tuple[str, Entry]],
    ) -> None:
        self.folder = folder
        self.model = model
        self.config = config
        self._places = places
        self._files: dict[str, safe_open] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the files."""
        self._files.clear()

    def holds(self, part: Named) -> bool:
        """Whether the checkpoint has a logical parameter of that name."""
        return part.name in self._places

    def read(self, part: Named) -> Tensor:
        """The values of a logical parameter, in its own shape and in the dtype of the file.

        Raises:
            CheckpointError: the model has no such parameter, or the file cannot be read.
        """
        if not self.holds(part):
            raise CheckpointError(
                f"{self.folder}: the model there has no {part.name}; expected one of its "
                f"{len(self._places)} tensors; take the [model] of its own config.json"
            )
        file, entry = self._places[part.name]
        try:
            if file not in self._files:
                self._files.clear()  # one file at a time: the pages of a mapped one stay resident
                self._files[file] = safe_open(self.folder / file, framework="pt")
            if entry.packed is None:
                return self._files[file].get_tensor(entry.disk)
            return entry.of(self._files[file].get_slice(entry.disk)[entry.expert]).contiguous()
        except (SafetensorError, OSError) as error:
            raise _unreadable(self.folder / file, error) from None


def open_pretrained(folder: Path, *, report: Report = warn) -> Pretrained:
    """Opens a checkpoint if its files hold its model; keys that nobody knows are reported.

    Raises:
        ConfigError: the model is one that weft does not compute.
        CheckpointError: files are missing or damaged, or their tensors are not those of the model.
    """
    config = _json(folder / CONFIG)
    dialect, model = read_config(config, report=report)
    found: dict[str, tuple[str, Shape, str]] = {}
    for file, names in _files(folder).items():
        held = _header(folder / file)
        if names is not None and names != set(held):
            odd = min(names ^ set(held))
            raise CheckpointError(
                f"{folder / file}: {INDEX} and the file disagree on {odd}; expected both to know "
                "it; fetch the checkpoint again"
            )
        found.update({name: (file, size, dtype) for name, (size, dtype) in held.items()})
    for name in _set_aside(found, dialect, config, model, report):
        del found[name]
    places = _match(folder, dialect, model, found)
    return Pretrained(
        folder, model=model, config=MappingProxyType(config), places=MappingProxyType(places)
    )


def load(state: State, pretrained: Pretrained) -> None:
    """Sets the parameters, master weights and router biases of one rank, whatever its layout.

    Numerics:
        Values are rounded once to the compute dtype, and master weights once to theirs.

    Raises:
        CheckpointError: the state is of another model.
    """
    plan = state.step.plan
    check_same_model(plan, pretrained)
    fill(state, pretrained.read)
    dtypes = precision(plan.precision)
    if dtypes.act != dtypes.acc:
        name, values = "", None
        for kind, piece, tensor in state.held():
            if kind != "master":
                continue
            if values is None or name != piece.name:  # columns of a matrix are many pieces of it
                name, values = piece.name, pretrained.read(piece).view(-1)
            tensor.copy_(values[piece.start : piece.stop])
    for layer in range(plan.shape.layers):
        bias = router_bias(layer, plan.shape.experts)
        target = state.statics[f"state:{bias.name}"]
        if pretrained.holds(bias):
            target.copy_(pretrained.read(bias))
        else:
            target.zero_()


def check_same_model(plan: Plan, pretrained: Pretrained) -> None:
    """Compares all that a logit depends on; starting and balancing are the recipe's affair.

    Raises:
        CheckpointError: the first number that differs, and what to set in the recipe.
    """
    free = ("init_std", "aux_coef", "z_coef", "balance")
    for ours, theirs in (
        (plan.shape, shape(pretrained.model)),
        (plan.arithmetic, arithmetic(pretrained.model)),
    ):
        for name in type(ours).__dataclass_fields__:
            here, there = getattr(ours, name), getattr(theirs, name)
            if name not in free and here != there:
                raise CheckpointError(
                    f"{pretrained.folder}: its model has {name} = {there}, the recipe says {here}; "
                    f"expected one model; try --set model.{name}={there}"
                )


def _set_aside(
    found: Mapping[str, object],
    dialect: Dialect,
    config: Mapping[str, Any],
    model: ModelConfig,
    report: Report,
) -> list[str]:
    """The tensors of layers behind the last, which predict a second token; that they stay behind is
    reported.
    """
    following = config.get(dialect.next_key) if dialect.next_key else 0
    layers = range(model.layers, model.layers + (following or 0))
    prefixes = tuple(f"model.layers.{i}." for i in layers)
    names = [name for name in found if name.startswith(prefixes)]
    if names:
        report(
            f"config.json: {dialect.next_key} = {following}: found {len(names)} tensors of layers "
            "that predict a second token; expected none, they are left out; train without them"
        )
    return names


def _match(
    folder: Path,
    dialect: Dialect,
    model: ModelConfig,
    found: Mapping[str, tuple[str, Shape, str]],
) -> dict[str, tuple[str, Entry]]:
    """Where each logical parameter lies, if tensors and parameters are the same set.

    Raises:
        CheckpointError: one of either has no partner, or another shape, or no dtype of numbers.
    """
    left, places = dict(found), {}
    for entry in entries(dialect, model):
        if entry.disk not in found:
            meant = closest_name(entry.disk, left)
            hint = f"; nearest in the files: {meant}" if meant else ""
            raise CheckpointError(
                f"{folder} has no tensor {entry.disk}; a {dialect.model_type} model of this "
                f"config.json needs it for {entry.part.name}{hint}; write the checkpoint with "
                "save_pretrained"
            )
        left.pop(entry.disk, None)
        file, size, dtype = found[entry.disk]
        wanted = entry.size(model.experts)
        if size != wanted or dtype not in READABLE:
            raise CheckpointError(
                f"{folder / file}: {entry.disk} has shape {list(size)} and dtype {dtype}; expected "
                f"{list(wanted)} in one of {', '.join(READABLE)}; take config.json and "
                "weights of the same release"
            )
        places[entry.part.name] = (file, entry)
    if left:
        name, (file, size, _) = next(iter(sorted(left.items())))
        raise CheckpointError(
            f"{folder / file}: nothing in a {dialect.model_type} model of this config.json is "
            f"called {name} {list(size)} ({len(left)} such tensors); expected each to be used; "
            "take config.json and weights of the same release"
        )
    return places


def _files(folder: Path) -> Mapping[str, set[str] | None]:
    """The weight files, and what an index says is in each (None: there is no index)."""
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() and index.exists():
        raise CheckpointError(
            f"{folder} holds both {SINGLE} and {INDEX}; expected one of them; remove the stale one"
        )
    if single.exists():
        return {SINGLE: None}
    if not index.exists():
        raise CheckpointError(
            f"{folder} holds neither {SINGLE} nor {INDEX}; expected safetensors (pickles are never "
            "opened); write the checkpoint with save_pretrained"
        )
    listed = _json(index).get("weight_map")
    files: dict[str, set[str] | None] = {}
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index} has no weight_map; expected one; fetch the file again")
    for name, file in listed.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(
                f"{index} puts {name} in {file!r}; expected a file beside it; fetch the file again"
            )
        held = files.setdefault(file, set())
        assert held is not None
        held.add(name)
    return files


def _header(path: Path) -> dict[str, tuple[Shape, str]]:
    """Shape and dtype of every tensor in a file."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(content, dict):
        raise _unreadable(path, "it holds no object")
    return content


def _unreadable(path: Path, error: object) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read: {error}; expected a whole file of a Hugging Face checkpoint; "
        "fetch it again"
    )

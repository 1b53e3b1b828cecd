"""From a file and overrides to a recipe, and back to text.

A recipe takes one way in and one way out:

    TOML -> tree -> overrides in it -> preset under [model] -> RunConfig -> TOML of every value
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from weft.config.branch import Branch, closest_name, written
from weft.config.presets import preset
from weft.config.run import RunConfig
from weft.errors import ConfigError, LayoutError

Tree = dict[str, Any]


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe in a file, with `key.path=value` overrides.

    Raises:
        ConfigError: the file cannot be read or is not TOML, a key or a value is wrong.
        LayoutError: the layout cannot exist for this model.
    """
    tree = _parsed(_text(Path(path)), str(path))
    try:
        return build(tree, overrides)
    except (ConfigError, LayoutError) as error:
        raise type(error)(f"{path}: {error}") from None


def build(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe in a tree of tables, as a file holds it, with `key.path=value` overrides.

    Raises:
        ConfigError: a key, a value or an override is wrong.
        LayoutError: the layout cannot exist for this model.
    """
    for override in overrides:
        tree = _overridden(tree, override)
    model = _table(tree.get("model"))
    if model is not None and "preset" in model:
        tree = {**tree, "model": _from_preset(model)}
    return RunConfig.model_validate(dict(tree))


def dump(config: RunConfig) -> str:
    """Every value of a recipe as TOML; loading it gives an equal recipe."""
    tables = {k: v for k, v in config if isinstance(v, Branch)}
    plain = {k: v for k, v in config if k not in tables}
    blocks = [_lines(plain), *(f"[{k}]\n{_lines(dict(v))}" for k, v in tables.items())]
    return "\n\n".join(blocks) + "\n"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not text: byte {error.start} is not UTF-8; save it as UTF-8"
        ) from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; {_neighbour(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise ConfigError(
            f"{path}: cannot be read ({error}); give the path of a .toml file"
        ) from None


def _neighbour(path: Path) -> str:
    """The recipe that was probably meant, from the same folder."""
    beside = sorted(p.name for p in path.parent.glob("*.toml"))
    meant = closest_name(path.name, beside)
    if meant:
        return f"nearest recipe there: {path.parent / meant}"
    return f"recipes there: {', '.join(beside)}" if beside else f"{path.parent} holds no .toml file"


def _parsed(text: str, origin: str) -> Tree:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        number = _line_of(str(error), text)
        line = text.splitlines()[number - 1].strip() if text.strip() else ""
        raise ConfigError(
            f"{origin}: not TOML in line {number}, {written(line)}: {error}; "
            'a line reads key = value (text in "quotes") or [table]'
        ) from None
    except (ValueError, RecursionError) as error:  # thousands of digits, thousands of brackets
        raise ConfigError(f"{origin}: {error}; a recipe has tables of plain values") from None


def _line_of(message: str, text: str) -> int:
    """The line that a complaint of tomllib is about; it tells the end of the text in words."""
    match = re.search(r"at line (\d+)", message)
    last = len(text.splitlines())
    return min(int(match.group(1)), last) if match else last


def _overridden(tree: Mapping[str, Any], override: str) -> Tree:
    """A tree with one `key.path=value` applied."""
    path, equals, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {written(override)}: expected key.path=value; for instance optim.lr=3e-4"
        )
    value = _value(text.strip())
    match keys:
        case [key]:
            return {**tree, key: value}
        case [section, key]:
            return {**tree, section: {**_branch(tree, section, override), key: value}}
        case _:
            raise ConfigError(f"--set {written(override)}: no key lies below {keys[0]}.{keys[1]}")


def _branch(tree: Mapping[str, Any], section: str, override: str) -> Tree:
    below = _table(tree.get(section, {}))
    if below is None:
        found = written(tree[section])
        raise ConfigError(f"--set {written(override)}: {section} is {found}, which has no keys")
    return below


def _table(value: object) -> Tree | None:
    """A value as a table, or None where it is none; the keys of TOML are strings."""
    return cast("Tree", value) if isinstance(value, dict) else None


def _value(text: str) -> object:
    """A TOML value, or the text itself where it is none: `float32` needs no quotes in a shell."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # tomllib's own error is a ValueError too
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _from_preset(model: Mapping[str, Any]) -> Tree:
    """A `[model]` table with its preset's values under its own."""
    name = model["preset"]
    if not isinstance(name, str):
        raise ConfigError(
            f"model.preset = {written(name)}: must be a string; for instance model.preset = "
            '"mixtral-8x7b"'
        )
    own = {key: value for key, value in model.items() if key != "preset"}
    return {**dict(preset(name)), **own}


def _lines(table: Mapping[str, object]) -> str:
    return "\n".join(f"{key} = {_toml(value)}" for key, value in table.items() if value is not None)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, cast('tuple[object, ...]', value)))}]"
    if isinstance(value, Branch):
        return _inline(value)
    assert isinstance(value, (int, float)), f"{value=} has no TOML form here"
    return repr(value)


def _inline(table: Branch) -> str:
    pairs = (f"{key} = {_toml(value)}" for key, value in table if value is not None)
    return f"{{{', '.join(pairs)}}}"

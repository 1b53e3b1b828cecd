"""The folder of a run, read back: whatever is there, while it goes on and after it has ended.

Nothing of it is needed but the metrics file, and nothing is written: a folder that is shared can be
read from another machine, or from a copy.
"""

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.errors import ConfigError
from weft.telemetry import events, metrics

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run has written down so far."""

    folder: Path
    header: Mapping[str, Any]
    steps: Sequence[Record]
    validations: Sequence[Record]
    events: Sequence[Record]
    config_text: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    sample: str

    @property
    def name(self) -> str:
        return self.header.get("run") or self.folder.name

    @property
    def total_steps(self) -> int | None:
        """The steps it is to take; None where the recipe is not beside it."""
        return self.config.get("train", {}).get("steps")

    @property
    def last_step(self) -> int:
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def skipped(self) -> list[int]:
        """The steps that were taken without an update."""
        return [record["step"] for record in self.steps if record["skipped"]]

    def series(self, field: str) -> tuple[list[int], list[float]]:
        """Steps and values of one field of the metrics, where it has a number."""
        pairs = [(r["step"], r[field]) for r in self.steps if r.get(field) is not None]
        return [step for step, _ in pairs], [value for _, value in pairs]


def read_run(folder: Path) -> Run:
    """Reads the folder of a run.

    Raises:
        ConfigError: there is no run in it, or a file of it is not what weft wrote.
    """
    path = folder / metrics.FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder}: no {metrics.FILE} here; expected the folder of a run, the recipe's "
            f"train.run_dir{_neighbours(folder)}"
        )
    records = metrics.read(path)
    return Run(
        folder=folder,
        header=metrics.read_header(path),
        steps=[record for record in records if "loss" in record],
        validations=[r for r in records if r.get("validation_loss") is not None],
        events=events.read(folder),
        config_text=_text(folder / "config.toml"),
        config=_parsed(folder / "config.toml", tomllib.loads),
        summary=_parsed(folder / "summary.json", json.loads),
        sample=_text(folder / "sample.txt"),
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _parsed(path: Path, parse: Callable[[str], dict[str, Any]]) -> Mapping[str, Any]:
    """What a file says; nothing where it is not there, as after a crash it may be."""
    text = _text(path)
    try:
        return parse(text) if text else {}
    except ValueError as error:
        raise ConfigError(
            f"{path}: {error}; expected what weft wrote there; delete it to look at the rest"
        ) from None


def _neighbours(folder: Path) -> str:
    """Runs that stand near: inside the folder, beside it, or where runs usually are."""
    places = (folder, folder.parent, Path("runs"))
    found = sorted({str(p.parent) for place in places for p in place.glob(f"*/{metrics.FILE}")})
    return f"; try one of {', '.join(found[:4])}" if found else "; try weft train RECIPE first"

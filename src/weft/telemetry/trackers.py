"""Where else a run's metrics go: TensorBoard, Weights & Biases or trackio, one thin adapter each.

`metrics.jsonl` is the record; a tracker gets the numbers of the same lines. Only the first rank
talks to it. Its package is looked for before any process starts, and imported when a run opens it.
"""

import importlib
import importlib.util
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from weft.errors import ConfigError

PACKAGES: Mapping[str, str] = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
}
PROJECT = "weft"
IDENTITY = "tracker.id"  # beside the run, so that a resumed one goes on under its own name


class Sink(Protocol):
    """What takes the records of a run."""

    def write(self, record: Mapping[str, Any]) -> None:
        """One record."""
        ...

    def cut(self, step: int) -> None:
        """The steps after this one are done again."""
        ...

    def close(self) -> None:
        """No more is coming."""
        ...


class Several:
    """Sinks that all get every record, in order."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    def write(self, record: Mapping[str, Any]) -> None:
        """Hands the record to each."""
        for sink in self.sinks:
            sink.write(record)

    def cut(self, step: int) -> None:
        """Tells each."""
        for sink in self.sinks:
            sink.cut(step)

    def close(self) -> None:
        """Closes each."""
        for sink in self.sinks:
            sink.close()


class TensorBoard:
    """Event files in `RUN/tensorboard`; steps that are done again replace those before."""

    def __init__(self, run_dir: Path, *, start: int) -> None:
        library = importlib.import_module("torch.utils.tensorboard")
        folder = str(run_dir / "tensorboard")
        self.writer = library.SummaryWriter(log_dir=folder, purge_step=start + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """One scalar a number."""
        for name, value in scalars(record):
            self.writer.add_scalar(name, value, global_step=record["step"])

    def cut(self, step: int) -> None:
        """Shows both, as TensorBoard does with a step that is written twice."""

    def close(self) -> None:
        """Writes what is still held."""
        self.writer.close()


class Service:
    """A run of W&B or of trackio: both are started, fed and ended by the same three calls."""

    def __init__(self, package: str, **options: Any) -> None:
        self.library = importlib.import_module(package)
        self.library.init(project=PROJECT, resume="allow", **options)

    def write(self, record: Mapping[str, Any]) -> None:
        """All numbers of a record in one call."""
        self.library.log(dict(scalars(record)), step=record["step"])

    def cut(self, step: int) -> None:
        """Leaves what is there: neither service takes back a step."""

    def close(self) -> None:
        """Ends the run there."""
        self.library.finish()


def check_tracker(name: str) -> None:
    """Looks for the package of a tracker without importing it.

    Raises:
        ConfigError: it is not installed.
    """
    package = PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f'train.tracker = "{name}": the package {package} is not installed; expected it beside '
            f'weft; try pip install "weft[{name}]", or --set train.tracker=none'
        )


def open_tracker(
    name: str, run_dir: Path, *, run: str, config: Mapping[str, Any], start: int
) -> Sink:
    """The tracker of a run that has `start` steps behind it; `none` is one that takes nothing."""
    match name:
        case "tensorboard":
            return TensorBoard(run_dir, start=start)
        case "wandb":
            settled = {"name": run, "config": dict(config), "dir": str(run_dir)}
            return Service("wandb", id=_identity(run_dir, start), **settled)
        case "trackio":  # knows a run by its name alone
            unique = f"{run}-{_identity(run_dir, start)}"
            return Service("trackio", name=unique, config=dict(config))
        case _:
            return Several(())


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a record under the names that trackers group by; nulls are left out.

    A list of numbers has one a routed layer; a list of lists is too much for a tracker.

    Example:
        >>> dict(scalars({"step": 3, "loss": 2.5, "mfu": None, "skipped": False, "x": [1, 2]}))
        {'train/loss': 2.5, 'train/skipped': 0.0, 'train/x/0': 1.0, 'train/x/1': 2.0}
    """
    for key, value in record.items():
        name = "validation/loss" if key == "validation_loss" else f"train/{key}"
        if key in ("step", "time"):
            continue
        if isinstance(value, int | float):
            yield name, float(value)
        elif isinstance(value, list):
            numbers = (v for v in value if isinstance(v, int | float))
            yield from ((f"{name}/{i}", float(number)) for i, number in enumerate(numbers))


def _identity(run_dir: Path, start: int) -> str:
    """A name of the run's own, kept for as long as it is continued."""
    path = run_dir / IDENTITY
    if start == 0 or not path.exists():
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")  # 48 random bits: no two alike
    return path.read_text(encoding="utf-8")

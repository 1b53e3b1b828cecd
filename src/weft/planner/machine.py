"""What a machine is: peaks, links, and what was measured on it; one data file each.

A number of a file stands beside its source: `device.peak_flops` of the data has an entry of the
same name under `[source]`, a measured row carries its own. What was not measured on a machine is
priced by the constants that all machines share (`planner.constants`).
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from weft.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """A measured matrix product: `groups` of `rows` by `n` by `k` together, in FLOP/s."""

    rows: int
    n: int
    k: int
    groups: int
    phase: str  # "", "dgrad" or "wgrad", as in a task
    flops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Measured causal attention over sequences of a length: FLOP/s of each phase."""

    length: int
    phase: str
    flops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """What a memory-bound body reached, in bytes a second, and what it takes however small."""

    body: str
    bandwidth: float
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """A measured collective: its bytes (as nccl-tests counts them) and its bus bandwidth."""

    algorithm: str
    transport: str
    size: float
    bus: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Everything that was measured on a machine; empty where nobody did."""

    products: tuple[Product, ...]
    attention: tuple[Attention, ...]
    passes: Mapping[str, Pass]
    messages: tuple[Message, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One accelerator: FLOP/s in bfloat16 on paper and as a share of it under power, memory."""

    peak_flops: float
    sustained: float
    memory_bytes: float
    memory_bandwidth: float
    copy: float
    multiprocessors: int
    launch: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """One level: how many ranks it joins, bytes a second of each rank and direction, latency."""

    ranks: int
    bandwidth: float
    latency: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A kind of accelerator in its cluster: links inside a node, one network card a rank."""

    name: str
    device: Device
    link: Network
    nic: Network
    measured: Measured


def names() -> tuple[str, ...]:
    """The machines that have a file, by name."""
    found = files("weft.planner").joinpath("machines").iterdir()
    return tuple(sorted(entry.name[:-5] for entry in found if entry.name.endswith(".toml")))


def machine(name: str) -> Machine:
    """The machine of that name, or of that file.

    Raises:
        ConfigError: no such machine, or a file that is none.
    """
    if name.endswith(".toml"):
        try:
            return parse(Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{name}: cannot be read ({error}); try --machine H200") from None
    match = {known.lower(): known for known in names()}.get(name.lower())
    if match is None:
        raise ConfigError(
            f"machine {name!r} is not known: expected one of {', '.join(names())} or a .toml file"
        )
    return parse(_text(match))


USUAL = "H200"  # what weft is measured on most


def nearest(device: str) -> Machine:
    """The machine of an accelerator by the name that its driver gives it; the usual one where no
    file is of that accelerator.

    Example:
        >>> nearest("NVIDIA H100 80GB HBM3").name, nearest("cpu").name
        ('H100', 'H200')
    """
    words = device.replace("-", " ").split()  # as in A100-SXM4-80GB
    return machine(next((name for name in names() if name in words), USUAL))


def parse(text: str) -> Machine:
    """A machine from its file.

    Raises:
        ConfigError: a number is missing, is not positive, or has no source.
    """
    tree = tomllib.loads(text)
    name = str(tree.get("name", "?"))
    measured: Mapping[str, Sequence[Mapping[str, Any]]] = tree.get("measured", {})
    return Machine(
        name=name,
        device=_table(Device, tree, "device", name),
        link=_table(Network, tree, "link", name),
        nic=_table(Network, tree, "nic", name),
        measured=Measured(
            products=tuple(_row(Product, row, name) for row in measured.get("product", ())),
            attention=tuple(_row(Attention, row, name) for row in measured.get("attention", ())),
            passes={row["body"]: _row(Pass, row, name) for row in measured.get("pass", ())},
            messages=tuple(_row(Message, row, name) for row in measured.get("message", ())),
        ),
    )


def _text(name: str) -> str:
    path = files("weft.planner").joinpath("machines", f"{name}.toml")
    return path.read_text(encoding="utf-8")


def _table(kind: Any, tree: Mapping[str, Any], key: str, machine: str) -> Any:
    numbers, source = tree.get(key, {}), tree.get("source", {})
    for field in (f.name for f in fields(kind)):
        value = numbers.get(field)
        if not isinstance(value, int | float) or value <= 0:
            raise ConfigError(
                f"machine {machine}: {key}.{field} = {value!r}, expected a number above 0; "
                "compare another file of planner/machines"
            )
        if not source.get(f"{key}.{field}"):
            raise ConfigError(
                f"machine {machine}: {key}.{field} has no source; "
                f'write "{key}.{field}" = "where from" under [source]'
            )
    return kind(**numbers)


def _row(kind: Any, row: Mapping[str, Any], machine: str) -> Any:
    if not row.get("source"):
        raise ConfigError(f"machine {machine}: the measured row {dict(row)} has no source")
    return kind(**{key: value for key, value in row.items() if key != "source"})

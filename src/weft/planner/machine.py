"""What a machine is: peaks, links, and what was measured on it; one data file each.

A number of a file stands beside its source: `device.peak_flops` of the data has an entry of the
same name under `[source]`, a measured row carries its own or is of the `run` that all are of. What
was not measured on a machine is priced by the constants that machines share (`planner.constants`).
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
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
    phase: str  # "", "dgrad", "wgrad" or "wgrad_first", as in a task
    flops: float


REPEATABLE = "repeatable"  # the attention of recipes that ask for no other


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Measured causal attention over sequences of a length: FLOP/s of each phase, every wave of it
    full (`planner.work.filled`), by the bodies that `kernels.attention` names.
    """

    length: int
    phase: str
    flops: float
    kernel: str = REPEATABLE


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
class Issue:
    """Host seconds that a body takes until it is on its way."""

    body: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """How many times as long each takes beside the other: a product, and a collective."""

    compute: float
    wire: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Everything that was measured on a machine; empty where nobody did."""

    products: tuple[Product, ...] = ()
    attention: tuple[Attention, ...] = ()
    passes: Mapping[str, Pass] = field(default_factory=dict[str, Pass])
    messages: tuple[Message, ...] = ()
    issue: Mapping[str, float] = field(default_factory=dict[str, float])  # host seconds by body
    beside: Beside | None = None


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


def sources(name: str) -> Mapping[str, str]:
    """Where the numbers of a machine that has a file are from, by their names."""
    return tomllib.loads(_text(machine(name).name))["source"]


def parse(text: str) -> Machine:
    """A machine from its file.

    Raises:
        ConfigError: a number is missing, is not positive, or has no source.
    """
    tree = tomllib.loads(text)
    name = str(tree.get("name", "?"))
    measured: Mapping[str, Any] = tree.get("measured", {})
    run = str(measured.get("run", ""))

    def rows(kind: Any, key: str) -> tuple[Any, ...]:
        many: Sequence[Mapping[str, Any]] = measured.get(key, ())
        return tuple(_row(kind, row, name, run) for row in many)

    beside = measured.get("beside")
    return Machine(
        name=name,
        device=_table(Device, tree, "device", name),
        link=_table(Network, tree, "link", name),
        nic=_table(Network, tree, "nic", name),
        measured=Measured(
            products=rows(Product, "product"),
            attention=rows(Attention, "attention"),
            passes={one.body: one for one in rows(Pass, "pass")},
            messages=rows(Message, "message"),
            issue={one.body: one.seconds for one in rows(Issue, "issue")},
            beside=None if beside is None else _row(Beside, beside, name, run),
        ),
    )


def _text(name: str) -> str:
    path = files("weft.planner").joinpath("machines", f"{name}.toml")
    return path.read_text(encoding="utf-8")


def _table(kind: Any, tree: Mapping[str, Any], key: str, machine: str) -> Any:
    numbers, source = tree.get(key, {}), tree.get("source", {})
    for part in (f.name for f in fields(kind)):
        value = numbers.get(part)
        if not isinstance(value, int | float) or value <= 0:
            raise ConfigError(
                f"machine {machine}: {key}.{part} = {value!r}, expected a number above 0; "
                "compare another file of planner/machines"
            )
        if not source.get(f"{key}.{part}"):
            raise ConfigError(
                f"machine {machine}: {key}.{part} has no source; "
                f'write "{key}.{part}" = "where from" under [source]'
            )
    return kind(**numbers)


def _row(kind: Any, row: Mapping[str, Any], machine: str, run: str) -> Any:
    """A measured row; its source is its own, or the run that all of them are of."""
    if not row.get("source", run):
        raise ConfigError(f"machine {machine}: the measured row {dict(row)} has no source")
    return kind(**{key: value for key, value in row.items() if key != "source"})

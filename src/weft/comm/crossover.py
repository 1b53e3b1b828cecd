"""Which collectives go over peer memory where there is another wire: tables of measured sizes, one
for calls that are one kernel, one for copies.

Kernels come first: what is in their table, and they can carry, is theirs; of the rest copies take
what is in their own. So where there are no kernels a size that only these carry faster goes the
other way, as does all that is in neither.

A table is asked for every call and answers alike on every member of a group, so it sees only what
is alike on all of them: the bytes a rank receives, and for ragged rows not even those.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from weft.comm.call import Call, Collective, received_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Received bytes a rank, both ends included."""

    least: float
    most: float = math.inf


Table = Mapping[Collective, Sizes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossover:
    """What kernels and what copies take, and where that was measured."""

    kernels: Table
    copies: Table
    machine: str
    record: str


def takes(table: Table, call: Call, size: int) -> bool:
    """Whether a call of a group of so many is in a table."""
    found = table.get(call.collective)
    if found is None:
        return False
    if found.least == 0 and math.isinf(found.most):
        return True
    if call.collective is Collective.ALL_TO_ALL_ROWS:
        return False
    return found.least <= received_bytes(call, size=size, position=0) <= found.most


def describe(crossover: Crossover) -> str:
    """The tables in words.

    Example:
        >>> kernels = {Collective.ALL_REDUCE: Sizes(least=0, most=4096)}
        >>> describe(Crossover(kernels=kernels, copies={}, machine="two GPUs", record="a file"))
        'by one kernel all_reduce to 4096 bytes; by copies nothing (two GPUs)'
    """
    kernels, copies = _row(crossover.kernels), _row(crossover.copies)
    return f"by one kernel {kernels}; by copies {copies} ({crossover.machine})"


def _row(table: Table) -> str:
    rows = [_words(collective, sizes) for collective, sizes in table.items()]
    return ", ".join(rows) or "nothing"


def _words(collective: Collective, sizes: Sizes) -> str:
    least = f" from {sizes.least:.0f} bytes" if sizes.least else ""
    most = "" if math.isinf(sizes.most) else f" to {sizes.most:.0f} bytes"
    return f"{collective}{least}{most}"


def everything() -> Crossover:
    """The tables that send all collectives over peer memory."""
    messages = (Collective.SEND, Collective.RECEIVE)
    sizes = MappingProxyType({one: Sizes(least=0) for one in Collective if one not in messages})
    return Crossover(kernels=sizes, copies=sizes, machine="asked for", record="")


def measured() -> Crossover:
    """The tables that weft brings along."""
    read = tomllib.loads(files("weft.comm").joinpath("crossover.toml").read_text("utf-8"))
    return Crossover(
        kernels=_table(read["kernels"]),
        copies=_table(read["copies"]),
        machine=read["machine"],
        record=read["record"],
    )


def _table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    return MappingProxyType({Collective(name): Sizes(**row) for name, row in rows.items()})

"""Which collectives go over peer memory where there is another wire: a table of measured sizes.

The table is asked for every call and answers alike on every member of a group, so it sees only what
is alike on all of them: the bytes a rank receives, and for ragged rows not even those. What is not
in it goes the other way.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossover:
    """Sizes by collective, and where they were measured."""

    sizes: Mapping[Collective, Sizes]
    machine: str
    record: str

    def takes(self, call: Call, size: int) -> bool:
        """Whether a call of a group of so many goes over peer memory."""
        found = self.sizes.get(call.collective)
        if found is None:
            return False
        if found.least == 0 and math.isinf(found.most):
            return True
        if call.collective is Collective.ALL_TO_ALL_ROWS:
            return False
        return found.least <= received_bytes(call, size=size, position=0) <= found.most


def describe(crossover: Crossover) -> str:
    """The table in words.

    Example:
        >>> sizes = {Collective.ALL_REDUCE: Sizes(least=0, most=4096)}
        >>> describe(Crossover(sizes=sizes, machine="two GPUs", record="a file"))
        'all_reduce to 4096 bytes (two GPUs)'
    """
    rows = [_words(collective, sizes) for collective, sizes in crossover.sizes.items()]
    return f"{', '.join(rows) or 'nothing'} ({crossover.machine})"


def _words(collective: Collective, sizes: Sizes) -> str:
    least = f" from {sizes.least:.0f} bytes" if sizes.least else ""
    most = "" if math.isinf(sizes.most) else f" to {sizes.most:.0f} bytes"
    return f"{collective}{least}{most}"


def everything() -> Crossover:
    """The table that sends all collectives over peer memory."""
    messages = (Collective.SEND, Collective.RECEIVE)
    sizes = {one: Sizes(least=0) for one in Collective if one not in messages}
    return Crossover(sizes=MappingProxyType(sizes), machine="asked for", record="")


def measured() -> Crossover:
    """The table that weft brings along."""
    table = tomllib.loads(files("weft.comm").joinpath("crossover.toml").read_text("utf-8"))
    machine, record = table.pop("machine"), table.pop("record")
    sizes = {Collective(name): Sizes(**row) for name, row in table.items()}
    return Crossover(sizes=MappingProxyType(sizes), machine=machine, record=record)

"""What is asked of a plan: a model, a cluster, and a batch.

"180x8xH800"    180 nodes of 8 ranks of that machine
"""

import re
from dataclasses import dataclass, replace

from weft.errors import ConfigError
from weft.planner.machine import Machine, machine

_CLUSTER = re.compile(r"(\d+)x(\d+)x(.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Nodes of equal ranks of one machine."""

    nodes: int
    node: int
    machine: Machine

    @property
    def ranks(self) -> int:
        return self.nodes * self.node


def cluster(text: str) -> Cluster:
    """The cluster that a text names.

    Raises:
        ConfigError: it is no cluster, or of an unknown machine.

    Example:
        >>> cluster("180x8xH800").ranks
        1440
    """
    match = _CLUSTER.fullmatch(text)
    if match is None or not int(match[1]) or not int(match[2]):
        raise ConfigError(
            f"cluster {text!r}: expected NODESxRANKSxMACHINE; try 180x8xH800, or 1x2xH200"
        )
    nodes, node = int(match[1]), int(match[2])
    found = machine(match[3])
    link = replace(found.link, ranks=node)
    return Cluster(nodes=nodes, node=node, machine=replace(found, link=link))

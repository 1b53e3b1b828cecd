"""Minimum cuts of small networks with whole capacities, by shortest augmenting paths.

The cut that is returned has the smallest side of the source of all minimum cuts.
"""

from collections import deque
from collections.abc import Hashable, Iterable

Node = Hashable
Edge = tuple[Node, Node, int]

SOURCE, SINK = "source", "sink"


def minimum_cut(edges: Iterable[Edge]) -> tuple[int, frozenset[Node]]:
    """The least total capacity from `SOURCE` to `SINK`, and what stays with the source.

    Example:
        >>> minimum_cut([(SOURCE, "a", 3), ("a", "b", 1), ("b", SINK, 2)])[0]
        1
    """
    left: dict[Node, dict[Node, int]] = {SOURCE: {}, SINK: {}}
    for one, other, capacity in edges:
        ahead, back = left.setdefault(one, {}), left.setdefault(other, {})
        ahead[other] = ahead.get(other, 0) + capacity
        back.setdefault(one, 0)
    total = 0
    while True:
        came = _explore(left)
        if SINK not in came:
            return total, frozenset(came)
        total += _augment(left, came)


def _explore(left: dict[Node, dict[Node, int]]) -> dict[Node, Node]:
    """Every node that the source still reaches, with the node before it on a shortest path."""
    came: dict[Node, Node] = {SOURCE: SOURCE}
    queue: deque[Node] = deque([SOURCE])
    while queue:
        node = queue.popleft()
        for after, capacity in left[node].items():
            if capacity > 0 and after not in came:
                came[after] = node
                queue.append(after)
    return came


def _augment(left: dict[Node, dict[Node, int]], came: dict[Node, Node]) -> int:
    """Sends what the path takes, and returns how much that was."""
    path: list[tuple[Node, Node]] = []
    node: Node = SINK
    while node != SOURCE:
        path.append((came[node], node))
        node = came[node]
    flow = min(left[one][other] for one, other in path)
    for one, other in path:
        left[one][other] -= flow
        left[other][one] += flow
    return flow

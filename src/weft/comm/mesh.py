"""Which ranks form a group: the arithmetic of the axes, and nothing that communicates.

    world = dp x sp, sp fastest:   rank = dp_rank * sp + sp_rank

    axis     its groups                                    (dp, sp, ep) = (2, 2, 2)
    sp       consecutive blocks of sp                      (0 1) (2 3)
    ep       consecutive blocks of ep                      (0 1) (2 3)
    edp      ranks that hold the same experts: rank % ep   (0 2) (1 3)
    dense    dp x sp, the replicas of the dense weights    (0 1 2 3)
    world    everybody                                     (0 1 2 3)

    with nodes of consecutive ranks (here 2) two axes more lie inside `dense` and two inside `edp`:

    dense_intra  ranks of one node                         (0 1) (2 3)
    dense_inter  equal places of all nodes                 (0 2) (1 3)
    edp_intra    the replicas of one node                  (0) (1) (2) (3)
    edp_inter    equal replicas of all nodes               (0 2) (1 3)

`dense` and `world` have the same members as long as there is no pipeline; they stay two axes
because what travels on them is ordered separately.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weft.errors import LayoutError

AXES = ("sp", "ep", "dense", "edp", "world")
NODE_AXES = ("dense_intra", "dense_inter", "edp_intra", "edp_inter")

Group = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """Degrees of data, sequence and expert parallelism, and the ranks of a node (0: one wire).

    Raises:
        LayoutError: a degree below one, ep does not divide dp x sp, or nodes do not fit.

    Example:
        >>> Mesh(dp=2, sp=4, ep=8).world
        8
    """

    dp: int = 1
    sp: int = 1
    ep: int = 1
    node: int = 0

    def __post_init__(self) -> None:
        if min(self.dp, self.sp, self.ep) < 1:
            raise LayoutError(
                f"dp = {self.dp}, sp = {self.sp}, ep = {self.ep}: a degree is at least 1; "
                "use 1 for an axis that is not cut"
            )
        if self.world % self.ep:
            raise LayoutError(
                f"ep = {self.ep} does not divide dp x sp = {self.dp} x {self.sp} = {self.world}; "
                f"try ep = {self.sp}"
            )
        if self.node and (self.world % self.node or min(self.node % self.ep, self.ep % self.node)):
            raise LayoutError(
                f"node = {self.node} does not divide dp x sp = {self.world}, or neither of node "
                f"and ep = {self.ep} divides the other; try node = {self.ep}"
            )

    @property
    def world(self) -> int:
        return self.dp * self.sp

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of this mesh."""
        return (*AXES, *NODE_AXES) if self.node else AXES


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """The group a rank belongs to on one axis, and its position in it."""

    ranks: Group
    position: int


def groups(mesh: Mesh, axis: str) -> tuple[Group, ...]:
    """The groups of an axis, each a tuple of world ranks in group order.

    Raises:
        LayoutError: there is no such axis.

    Example:
        >>> groups(Mesh(dp=2, sp=2, ep=2), "ep")
        ((0, 1), (2, 3))
        >>> groups(Mesh(dp=2, sp=2, ep=2), "edp")
        ((0, 2), (1, 3))
        >>> groups(Mesh(dp=2, sp=2, ep=2), "world")
        ((0, 1, 2, 3),)
    """
    match axis:
        case "sp":
            return _blocks(mesh.world, mesh.sp)
        case "ep":
            return _blocks(mesh.world, mesh.ep)
        case "edp":
            return tuple(tuple(range(r, mesh.world, mesh.ep)) for r in range(mesh.ep))
        case "dense" | "world":
            return _blocks(mesh.world, mesh.world)
        case "dense_intra" | "edp_intra" if mesh.node:
            whole = groups(mesh, axis.removesuffix("_intra"))
            return _split(whole, near=lambda rank: rank // mesh.node)
        case "dense_inter" | "edp_inter" if mesh.node:
            whole = groups(mesh, axis.removesuffix("_inter"))
            return _split(whole, near=lambda rank: rank % mesh.node)
        case _:
            raise LayoutError(f"no axis {axis!r}; the axes are {', '.join(mesh.axes)}")


def membership(mesh: Mesh, axis: str, rank: int) -> Membership:
    """The group of one rank on one axis, and where the rank stands in it.

    Example:
        >>> membership(Mesh(dp=2, sp=2, ep=2), "edp", 3)
        Membership(ranks=(1, 3), position=1)
    """
    assert 0 <= rank < mesh.world, f"{rank=} of a world of {mesh.world}"
    ranks = next(group for group in groups(mesh, axis) if rank in group)
    return Membership(ranks=ranks, position=ranks.index(rank))


def memberships(mesh: Mesh, rank: int) -> Mapping[str, Membership]:
    """The membership of one rank on every axis.

    Example:
        >>> {axis: m.position for axis, m in memberships(Mesh(dp=2, sp=2, ep=2), 3).items()}
        {'sp': 1, 'ep': 1, 'dense': 3, 'edp': 1, 'world': 3}
    """
    return {axis: membership(mesh, axis, rank) for axis in mesh.axes}


def _split(whole: tuple[Group, ...], *, near: Callable[[int], int]) -> tuple[Group, ...]:
    """Every group cut into those of its ranks that are near one another."""
    return tuple(
        tuple(rank for rank in group if near(rank) == place)
        for group in whole
        for place in dict.fromkeys(map(near, group))
    )


def _blocks(world: int, size: int) -> tuple[Group, ...]:
    return tuple(tuple(range(start, start + size)) for start in range(0, world, size))

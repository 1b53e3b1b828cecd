"""Which ranks form a group: the arithmetic of the axes, and nothing that communicates.

    world = dp x sp, sp fastest:   rank = dp_rank * sp + sp_rank

    axis     its groups                                    (dp, sp, ep) = (2, 2, 2)
    sp       consecutive blocks of sp                      (0 1) (2 3)
    ep       consecutive blocks of ep                      (0 1) (2 3)
    edp      ranks that hold the same experts: rank % ep   (0 2) (1 3)
    dense    dp x sp, the replicas of the dense weights    (0 1 2 3)
    world    everybody                                     (0 1 2 3)

`dense` and `world` have the same members as long as there is no pipeline; they stay two axes
because what travels on them is ordered separately.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from weft.errors import LayoutError

AXES = ("sp", "ep", "dense", "edp", "world")

Group = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """Degrees of data, sequence and expert parallelism.

    Raises:
        LayoutError: a degree below one, or ep does not divide dp x sp.

    Example:
        >>> Mesh(dp=2, sp=4, ep=8).world
        8
    """

    dp: int = 1
    sp: int = 1
    ep: int = 1

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

    @property
    def world(self) -> int:
        return self.dp * self.sp


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
        case _:
            raise LayoutError(f"no axis {axis!r}; the axes are {', '.join(AXES)}")


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
    return {axis: membership(mesh, axis, rank) for axis in AXES}


def _blocks(world: int, size: int) -> tuple[Group, ...]:
    return tuple(tuple(range(start, start + size)) for start in range(0, world, size))

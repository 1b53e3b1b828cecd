"""Which ranks form a group: the arithmetic of the axes, and nothing that communicates.

    world = pp x dp x sp, sp fastest:   rank = (pp_rank * dp + dp_rank) * sp + sp_rank

    axis     its groups                                   (pp, dp, sp, ep) = (2, 2, 2, 2)
    sp       consecutive blocks of sp                     (0 1) (2 3) (4 5) (6 7)
    dp       ranks of a stage with the same slice         (0 2) (1 3) (4 6) (5 7)
    ep       consecutive blocks of ep                     (0 1) (2 3) (4 5) (6 7)
    edp      ranks of a stage with the same experts       (0 2) (1 3) (4 6) (5 7)
    dense    dp x sp, one stage of the pipeline           (0 1 2 3) (4 5 6 7)
    pp       one rank of each stage                       (0 4) (1 5) (2 6) (3 7)
    ends     the same of the first stage and the last     (0 4) (1 5) (2 6) (3 7)
    world    everybody                                    (0 1 2 3 4 5 6 7)

    with nodes of consecutive ranks (here 2) two axes more lie inside `dense`, `edp` and `dp` each:

    dense_intra  ranks of one node                        (0 1) (2 3)
    dense_inter  equal places of all nodes                (0 2) (1 3)
    edp_intra    the replicas of one node                 (0) (1) (2) (3)
    edp_inter    equal replicas of all nodes              (0 2) (1 3)

`dense` and `world` have the same members where there is no pipeline; they are two axes because what
travels on them is ordered separately.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weft.errors import LayoutError

AXES = ("sp", "dp", "ep", "dense", "edp", "pp", "ends", "world")
NODE_AXES = tuple(f"{axis}_{leg}" for axis in ("dense", "edp", "dp") for leg in ("intra", "inter"))

Group = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """Degrees of pipeline, data, sequence and expert parallelism, and the ranks of a node (0: one
    wire).

    Raises:
        LayoutError: a degree below one, ep does not divide dp x sp, or nodes do not fit.

    Example:
        >>> Mesh(dp=2, sp=4, ep=8).world
        8
    """

    pp: int = 1
    dp: int = 1
    sp: int = 1
    ep: int = 1
    node: int = 0

    def __post_init__(self) -> None:
        if min(self.pp, self.dp, self.sp, self.ep) < 1:
            raise LayoutError(
                f"pp = {self.pp}, dp = {self.dp}, sp = {self.sp}, ep = {self.ep}: "
                "a degree is at least 1; use 1 for an axis that is not cut"
            )
        if self.stage % self.ep:
            raise LayoutError(
                f"ep = {self.ep} does not divide dp x sp = {self.dp} x {self.sp} = {self.stage}; "
                f"try ep = {self.sp}"
            )
        if self.node and (self.world % self.node or min(self.node % self.ep, self.ep % self.node)):
            raise LayoutError(
                f"node = {self.node} does not divide dp x sp = {self.world}, or neither of node "
                f"and ep = {self.ep} divides the other; try node = {self.ep}"
            )

    @property
    def world(self) -> int:
        return self.pp * self.stage

    @property
    def stage(self) -> int:
        """Ranks of one pipeline stage."""
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
        case "dp":
            return _strides(mesh, mesh.sp)
        case "edp":
            return _strides(mesh, mesh.ep)
        case "dense":
            return _blocks(mesh.world, mesh.stage)
        case "pp":
            return tuple(tuple(range(r, mesh.world, mesh.stage)) for r in range(mesh.stage))
        case "ends":
            return _ends(mesh)
        case "world":
            return _blocks(mesh.world, mesh.world)
        case "dense_intra" | "edp_intra" | "dp_intra" if mesh.node:
            whole = groups(mesh, axis.removesuffix("_intra"))
            return _split(whole, near=lambda rank: rank // mesh.node)
        case "dense_inter" | "edp_inter" | "dp_inter" if mesh.node:
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
        {'sp': 1, 'dp': 1, 'ep': 1, 'dense': 3, 'edp': 1, 'pp': 0, 'ends': 0, 'world': 3}
    """
    return {axis: membership(mesh, axis, rank) for axis in mesh.axes}


def _split(whole: tuple[Group, ...], *, near: Callable[[int], int]) -> tuple[Group, ...]:
    """Every group cut into those of its ranks that are near one another."""
    return tuple(
        tuple(rank for rank in group if near(rank) == place)
        for group in whole
        for place in dict.fromkeys(map(near, group))
    )


def _ends(mesh: Mesh) -> tuple[Group, ...]:
    """Pairs over the first and the last stage; every rank between them is alone."""
    last = mesh.world - mesh.stage
    pairs = tuple((r, r + last) if last else (r,) for r in range(mesh.stage))
    return (*pairs, *((r,) for r in range(mesh.stage, last)))


def _blocks(world: int, size: int) -> tuple[Group, ...]:
    return tuple(tuple(range(start, start + size)) for start in range(0, world, size))


def _strides(mesh: Mesh, step: int) -> tuple[Group, ...]:
    """The ranks of each stage that are so far apart."""
    return tuple(
        tuple(range(stage + first, stage + mesh.stage, step))
        for stage in range(0, mesh.world, mesh.stage)
        for first in range(step)
    )

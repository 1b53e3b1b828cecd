"""The arithmetic of the axes."""

import subprocess
import sys

import pytest

from weft.comm.mesh import AXES, Mesh, groups, membership, memberships
from weft.errors import LayoutError

LAYOUTS = [(1, 2, 2), (2, 1, 1), (2, 1, 2), (2, 2, 2), (2, 2, 4), (2, 4, 8), (2, 4, 2), (1, 1, 1)]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("dp", "sp", "ep"), LAYOUTS)
def test_groups_of_an_axis_partition_the_ranks(dp, sp, ep, axis):
    mesh = Mesh(dp=dp, sp=sp, ep=ep)
    members = [rank for group in groups(mesh, axis) for rank in group]
    assert sorted(members) == list(range(mesh.world))
    assert all(group == tuple(sorted(group)) for group in groups(mesh, axis))


@pytest.mark.parametrize(("dp", "sp", "ep"), LAYOUTS)
def test_group_sizes_are_the_degrees(dp, sp, ep):
    mesh = Mesh(dp=dp, sp=sp, ep=ep)
    world = dp * sp
    sizes = {axis: {len(group) for group in groups(mesh, axis)} for axis in AXES}
    assert sizes == {
        "sp": {sp}, "dp": {dp}, "ep": {ep}, "edp": {world // ep}, "dense": {world},
        "world": {world}, "pp": {1}, "ends": {1},
    }  # fmt: skip


@pytest.mark.parametrize(("dp", "sp", "ep"), LAYOUTS)
def test_an_edp_group_holds_one_share_of_the_experts_and_an_ep_group_all_of_them(dp, sp, ep):
    mesh = Mesh(dp=dp, sp=sp, ep=ep)
    assert all(len({rank % ep for rank in group}) == 1 for group in groups(mesh, "edp"))
    assert all([rank % ep for rank in group] == list(range(ep)) for group in groups(mesh, "ep"))


@pytest.mark.parametrize(("dp", "sp", "ep"), LAYOUTS)
def test_position_points_back_at_the_rank(dp, sp, ep):
    mesh = Mesh(dp=dp, sp=sp, ep=ep)
    for rank in range(mesh.world):
        assert all(m.ranks[m.position] == rank for m in memberships(mesh, rank).values())


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("pp", [2, 3, 4])
def test_groups_of_a_pipeline_partition_the_ranks(pp, axis):
    mesh = Mesh(pp=pp, dp=2, sp=2, ep=2)
    members = [rank for group in groups(mesh, axis) for rank in group]
    assert sorted(members) == list(range(mesh.world))


def test_a_pipeline_is_outermost_and_only_it_crosses_stages():
    mesh = Mesh(pp=3, dp=2, sp=2, ep=2)
    assert groups(mesh, "pp") == ((0, 4, 8), (1, 5, 9), (2, 6, 10), (3, 7, 11))
    assert groups(mesh, "ends")[:4] == ((0, 8), (1, 9), (2, 10), (3, 11))
    for axis in ("sp", "ep", "edp", "dense"):
        assert all(len({rank // 4 for rank in group}) == 1 for group in groups(mesh, axis))


def test_sp_is_the_fastest_axis():
    assert groups(Mesh(dp=2, sp=4, ep=8), "sp") == ((0, 1, 2, 3), (4, 5, 6, 7))


def test_ep_may_fold_over_data_parallel_ranks():
    assert groups(Mesh(dp=4, sp=2, ep=4), "ep") == ((0, 1, 2, 3), (4, 5, 6, 7))


def test_ep_that_does_not_divide_the_world_is_refused_with_a_way_out():
    with pytest.raises(LayoutError, match=r"ep = 3 does not divide .* = 4; try ep = 2"):
        Mesh(dp=2, sp=2, ep=3)


def test_nodes_cut_the_replicas_of_experts_alike():
    mesh = Mesh(dp=4, sp=2, ep=2, node=4)
    assert groups(mesh, "dense_intra") == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert groups(mesh, "dense_inter") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert groups(mesh, "edp_intra") == ((0, 2), (4, 6), (1, 3), (5, 7))
    assert groups(mesh, "edp_inter") == ((0, 4), (2, 6), (1, 5), (3, 7))


def test_experts_spread_over_nodes_have_a_replica_a_node_at_most():
    mesh = Mesh(dp=4, sp=2, ep=4, node=2)
    assert set(groups(mesh, "edp_intra")) == {(rank,) for rank in range(8)}
    assert groups(mesh, "edp_inter") == groups(mesh, "edp")


@pytest.mark.parametrize("node", [3, 8])
def test_nodes_that_do_not_fit_are_refused(node):
    with pytest.raises(LayoutError, match=f"node = {node}"):
        Mesh(dp=2, sp=2, ep=2, node=node)


def test_without_nodes_there_are_no_axes_of_nodes():
    assert "dense_intra" in memberships(Mesh(dp=2, node=1), 0)
    assert "dense_intra" not in memberships(Mesh(dp=2), 0)


def test_degree_of_zero_is_refused():
    with pytest.raises(LayoutError, match="at least 1"):
        Mesh(dp=0, sp=2, ep=1)


def test_unknown_axis_is_refused_with_the_known_ones():
    with pytest.raises(LayoutError, match="no axis 'tp'; the axes are sp, dp, ep"):
        membership(Mesh(), "tp", 0)


def test_mesh_imports_no_torch():
    program = "import sys; sys.modules['torch'] = None; import weft.comm.mesh"
    subprocess.run([sys.executable, "-c", program], check=True)

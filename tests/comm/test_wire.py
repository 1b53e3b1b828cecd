"""What the real wires share."""

import pytest
import torch

from weft.comm.mesh import AXES, Mesh, memberships
from weft.comm.transport import LANES, LINKS
from weft.comm.wire import close_groups, open_groups
from weft.errors import VerificationError
from weft.testing.ranks import run_ranks


def open_here(rank, mesh):
    opened = open_groups(
        mesh,
        backend="gloo",
        lanes=LANES,
        links=LINKS[:2],
        timeout_seconds=10,
        device=torch.device("cpu"),
    )
    sizes = {"/".join(key): group.size() for key, group in opened.items()}
    close_groups(opened)
    return sizes


def test_every_rank_has_a_group_for_each_axis_and_lane_except_groups_of_one():
    mesh = Mesh(dp=4, sp=1, ep=2)
    for rank, sizes in enumerate(run_ranks(4, open_here, mesh)):
        members = memberships(mesh, rank)
        assert sizes == {
            f"{axis}/{lane}": len(members[axis].ranks)
            for axis in AXES
            for lane in LANES
            if axis not in ("sp", "pp", "ends")
        }


def test_messages_have_a_group_for_each_link_and_other_axes_none():
    for sizes in run_ranks(2, open_here, Mesh(pp=2)):
        assert {key for key in sizes if "/forward" in key} == {"pp/forward"}
        assert {key for key in sizes if key.startswith("pp/")} == {"pp/forward", "pp/backward"}


def test_layout_of_another_world_is_refused():
    with pytest.raises(VerificationError, match="2 ranks are running, the layout .* needs 4"):
        run_ranks(2, open_here, Mesh(dp=2, sp=2))

"""A rank is read off the environment that torchrun or Slurm makes."""

import pytest

from weft.trainer.cluster import Member, found

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SLURM = {
    "SLURM_JOB_ID": "4000007",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}


def test_torchrun_says_it_all() -> None:
    expected = Member(rank=3, world=8, local_rank=1, neighbours=2, meeting="env://")
    assert found(TORCHRUN) == found({**SLURM, **TORCHRUN}) == expected


def test_ranks_of_slurm_meet_where_srun_was_called() -> None:
    expected = Member(rank=9, world=16, local_rank=1, neighbours=8, meeting="tcp://10.0.0.1:20007")
    assert found(SLURM) == expected
    elsewhere = found({**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "1234"})
    assert elsewhere is not None
    assert elsewhere.meeting == "tcp://head:1234"


@pytest.mark.parametrize("per_node", ["8(x2)", "8,4(x2)", "4,8"])
def test_neighbours_are_those_of_the_fullest_node(per_node: str) -> None:
    member = found({**SLURM, "SLURM_STEP_TASKS_PER_NODE": per_node})
    assert member is not None
    assert member.neighbours == 8


@pytest.mark.parametrize("environment", [{}, {"RANK": "0"}, {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}])
def test_a_process_that_is_nobodys_rank_is_none(environment: dict) -> None:
    assert found(environment) is None

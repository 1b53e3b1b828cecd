"""Who else started this process: the rank that torchrun or Slurm describes in its environment.

    torchrun    RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE; where to meet is in the environment
    srun        SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE; the
                ranks meet on the node that srun was called on, at a port made from the job's number

A step of one task is nobody's rank: it starts the ranks of its machine itself.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_FIRST_PORT, _PORTS = 20_000, 20_000  # below the ports that Linux gives out by itself (32768 on)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One rank of a world that somebody else has started."""

    rank: int
    world: int
    local_rank: int
    neighbours: int
    meeting: str


def found(environment: Mapping[str, str]) -> Member | None:
    """The rank that an environment describes, if it describes one.

    Example:
        >>> found({"RANK": "3", "WORLD_SIZE": "4"}).world
        4
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _of_torchrun(environment)
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _of_slurm(environment)
    return None


def _of_torchrun(environment: Mapping[str, str]) -> Member:
    world = environment["WORLD_SIZE"]
    return Member(
        rank=int(environment["RANK"]),
        world=int(world),
        local_rank=int(environment.get("LOCAL_RANK", "0")),
        neighbours=int(environment.get("LOCAL_WORLD_SIZE", world)),
        meeting="env://",
    )


def _of_slurm(environment: Mapping[str, str]) -> Member:
    address = environment.get("MASTER_ADDR") or environment["SLURM_LAUNCH_NODE_IPADDR"]
    port = int(environment.get("MASTER_PORT") or _port(int(environment["SLURM_JOB_ID"])))
    world = environment["SLURM_STEP_NUM_TASKS"]
    layout = environment.get("SLURM_STEP_TASKS_PER_NODE", world)  # as in 8(x2) or 8,4
    return Member(
        rank=int(environment["SLURM_PROCID"]),
        world=int(world),
        local_rank=int(environment["SLURM_LOCALID"]),
        neighbours=max(map(int, re.findall(r"(\d+)(?:\(x\d+\))?", layout))),
        meeting=f"tcp://{address}:{port}",
    )


def _port(job: int) -> int:
    return _FIRST_PORT + job % _PORTS

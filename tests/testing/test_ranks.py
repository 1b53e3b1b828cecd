"""The harness of real ranks reports what happened to which rank."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from weft.errors import DeadlockError, VerificationError
from weft.testing.ranks import run_ranks


def test_results_come_back_in_rank_order():
    def describe(rank, base):
        return {"rank": rank, "tensor": torch.full((2,), base + rank, dtype=torch.bfloat16)}

    results = run_ranks(3, describe, 10)
    assert [r["rank"] for r in results] == [0, 1, 2]
    assert all(torch.equal(r["tensor"], torch.full((2,), 10 + i).bfloat16())
               for i, r in enumerate(results))  # fmt: skip


def test_ranks_share_a_gloo_world_and_compute_with_one_thread():
    def take_part(rank):
        x = torch.tensor([rank + 1])
        dist.all_reduce(x)
        return [int(x), dist.get_world_size(), torch.get_num_threads()]

    assert run_ranks(4, take_part) == [[10, 4, 1]] * 4


def test_result_longer_than_a_pipe_arrives_whole():
    def make(rank):
        return torch.arange(1 << 20) + rank

    results = run_ranks(2, make)
    assert all(
        torch.equal(result, torch.arange(1 << 20) + rank) for rank, result in enumerate(results)
    )


def test_failing_rank_is_named_with_its_traceback_and_the_others_are_not_waited_for():
    def fail_on_two(rank):
        if rank == 2:
            raise ValueError("expert 3 is missing")
        dist.barrier()

    began = time.monotonic()
    with pytest.raises(
        VerificationError, match=r"rank 2 of 4 failed first:(.|\n)*fail_on_two"
    ) as e:
        run_ranks(4, fail_on_two, timeout=30)
    assert "expert 3 is missing" in str(e.value)
    assert time.monotonic() - began < 10


def test_rank_that_fails_because_another_did_is_not_blamed():
    def fail_in_turn(rank):
        time.sleep(0.1 * (1 - rank))
        raise ValueError(f"from {rank}")

    with pytest.raises(VerificationError, match="rank 1 of 2 failed first"):
        run_ranks(2, fail_in_turn)


def test_killed_rank_is_named():
    def die_on_one(rank):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()

    with pytest.raises(VerificationError, match="rank 1 of 2 died"):
        run_ranks(2, die_on_one)


def children() -> set[str]:
    """The processes that this one has started and that are not gone, by the kernel's own list."""
    return {
        pid
        for path in Path("/proc/self/task").glob("*/children")
        for pid in path.read_text().split()
    }


def test_late_rank_is_named_with_its_stack_and_nothing_is_left_running():
    def sleep_on_zero(rank):
        if rank == 0:
            time.sleep(60)

    before = children()
    began = time.monotonic()
    with pytest.raises(
        DeadlockError, match=r"ranks \[0\] of 2 had not finished(.|\n)*sleep_on_zero"
    ):
        run_ranks(2, sleep_on_zero, timeout=1)
    assert time.monotonic() - began < 5
    assert children() <= before


def test_result_that_would_need_pickle_is_refused():
    with pytest.raises(Exception, match="(?i)weights.only"):
        run_ranks(1, lambda _: DeadlockError("an object"))


def test_open_files_do_not_grow():
    def nothing(rank):
        return None

    run_ranks(2, nothing)
    before = len(list(Path("/proc/self/fd").iterdir()))
    run_ranks(2, nothing)
    assert len(list(Path("/proc/self/fd").iterdir())) == before

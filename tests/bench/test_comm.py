"""Wires are compared for bits before they are timed; a figure is that of the slowest rank."""

import json

import pytest
import torch

from weft.bench import comm
from weft.bench.spread import spread
from weft.comm.mesh import Mesh
from weft.comm.transports.counting import CountingTransport
from weft.comm.transports.stacked import StackedWorld
from weft.errors import CommunicationError, VerificationError

CPU = torch.device("cpu")
QUICK = comm.Work(megabytes=(1,), elements=1 << 10, repeats=2, warm_up=1)


def test_a_cpu_has_gloo_alone_and_says_so(tmp_path, capfd):
    file = tmp_path / "comm.jsonl"
    comm.measure_here(comm.Order(ranks=2, device="cpu", work=QUICK, file=file, say=print))
    shown = capfd.readouterr().out
    assert "2 ranks of CPU: gloo; no other wire to compare with on this device" in shown
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    sums = ["all_reduce"] * len(comm.SHORT_SUMS)
    assert [line["collective"] for line in lines] == [*comm.MOVES, *sums, "gradients"]
    assert {tuple(line["wires"]) for line in lines} == {("gloo",), ("gloo FP32", "gloo BF16")}
    assert all((line["ranks"], line["bench"]) == (2, "comm") for line in lines)


def test_a_device_has_more_to_carry_than_a_cpu():
    small, large = (comm.work_on(torch.device(name), repeats=5) for name in ("cpu", "cuda"))
    assert small.elements < large.elements == 1 << 30
    assert large.megabytes == (1, 4, 16, 64, 256)


def contest(*bits):
    """Wires that find these bits, each in turn."""
    found = iter(bits)
    runs = {name: (name, lambda _: torch.tensor([next(found)])) for name in ("one", "other")}
    return comm.Contest(name="all_gather", received_bytes=8, runs=runs, alike=("one", "other"))


def test_wires_that_agree_twice_may_be_timed():
    comm._compare(contest(1, 1, 1, 1), {"one": None, "other": None})


@pytest.mark.parametrize("bits", [(1, 2, 1, 1), (1, 1, 2, 1)], ids=["another wire", "another time"])
def test_other_bits_are_refused(bits):
    with pytest.raises(VerificationError, match="found other bits than one"):
        comm._compare(contest(*bits), {"one": None, "other": None})


def test_kernels_take_part_at_every_size():
    wires = dict.fromkeys(("NCCL", comm.KERNELS, "symmetric"))
    for make in comm.moves(wires, CPU, 2, (1, 64)):
        contest = make()
        assert contest.alike == tuple(contest.runs) == tuple(wires)


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_contest_brings_a_rank_the_bytes_that_it_says(ranks):
    wires = dict.fromkeys(("a", "b"))
    made = [make() for make in comm.moves(wires, CPU, ranks, (1,))]
    made += [make() for make in comm.short_sums(wires, CPU, ranks)]
    for one in (*made, comm.gradients(wires, CPU, ranks, 1 << 20)):
        transport = CountingTransport(StackedWorld(Mesh(dp=ranks)).transport(0))
        *_, (_, run) = one.runs.values()
        with pytest.raises(CommunicationError, match="incomplete"):  # the others do not call
            run(transport)
        assert sum(transport.counts().values()) == one.received_bytes


def test_ratio_and_rate_are_of_medians():
    times = {"NCCL": spread([30.0, 20.0, 10.0]), "symmetric": spread([10.0])}
    row = comm.Row(name="all_gather", received_bytes=1 << 20, times_us=times)
    assert row.ratio("symmetric") == 2.0
    assert row.rate("NCCL") == pytest.approx((1 << 20) / 20e3)
    assert "2.00x" in comm.render([row], "two GPUs")

"""Collectives by size: every one of them, and none where there is nobody to send to."""

import torch

from weft.bench.collectives import COLLECTIVES, SMALL, beside, sweep
from weft.comm.mesh import Mesh
from weft.comm.transports.gloo import GlooTransport
from weft.comm.transports.stacked import StackedWorld
from weft.testing.ranks import run_ranks

CPU = torch.device("cpu")


def _sweep(rank: int) -> list[tuple[str, float, float]]:
    del rank
    transport = GlooTransport(Mesh(dp=2), timeout_seconds=30.0)
    found = [(m.algorithm, m.size, m.bus) for m in sweep(transport, CPU, torch.float32)]
    transport.close()
    return found


def test_two_ranks_measure_every_collective_at_every_size() -> None:
    for found in run_ranks(2, _sweep):
        assert {(name, size) for name, size, _ in found} == {
            (name, float(size)) for name in COLLECTIVES for size in SMALL
        }
        assert min(bus for *_, bus in found) > 0


def test_one_rank_sends_nothing() -> None:
    transport = StackedWorld(Mesh()).transport(0)
    assert list(sweep(transport, CPU, torch.float32)) == []
    assert beside(transport, CPU, torch.float32) is None

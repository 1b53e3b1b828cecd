"""The wire of NVIDIA GPUs: the same values as `stacked`, and its bits where nothing is added."""

import pytest
import torch

from weft.comm.mesh import Mesh
from weft.comm.transports.nccl import NcclTransport
from weft.comm.transports.stacked import StackedWorld
from weft.testing.ranks import run_ranks

pytestmark = [
    pytest.mark.gpus2,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

MESH = Mesh(sp=2, ep=2)


def post_everything(t, rank, device):
    x = (torch.arange(24.0) + 100 * rank).view(8, 3).to(device)
    send, receive = [((0, 3), (0, 0)), ((0, 5), (3, 5))][rank]
    rows = x[: sum(send)]
    bucket = torch.zeros(48, dtype=torch.bfloat16, device=device)
    return [
        t.all_to_all(x, axis="sp", label="even"),
        t.all_to_all_rows(rows, send, receive, axis="ep", label="rows"),
        t.all_gather(x, axis="ep", label="gather"),
        t.reduce_scatter(x, axis="dense", label="scatter", lane="sync"),
        t.all_reduce(x, axis="world", label="reduce", lane="sync"),
        t.all_gather_into(bucket, x.view(-1), axis="dense", label="into", lane="sync"),
    ]


def run_nccl(rank):
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    t = NcclTransport(MESH, device=device, timeout_seconds=60)
    results = [handle.wait().cpu() for handle in post_everything(t, rank, device)]
    t.barrier()
    t.close()
    return results


def test_two_gpus_give_the_bits_of_stacked():
    world = StackedWorld(MESH)
    posted = [post_everything(world.transport(r), r, torch.device("cpu")) for r in range(2)]
    for results, handles in zip(run_ranks(2, run_nccl, timeout=120), posted, strict=True):
        for result, handle in zip(results, handles, strict=True):
            assert torch.equal(result, handle.wait())

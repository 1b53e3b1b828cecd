import pytest
import torch

from weft.comm.handle import Finished
from weft.runtime.lanes import CudaLanes, HostLanes


def test_on_the_host_the_transport_is_asynchronous_itself():
    def body(x):
        return Finished(x)

    assert HostLanes().posting(body, "sp") is body


@pytest.mark.gpu
def test_a_cuda_lane_waits_for_compute_and_compute_for_it():
    device = torch.device("cuda", torch.cuda.current_device())
    lanes = CudaLanes(device)
    x = torch.zeros(2**22, device=device)
    x.add_(1)
    flight = lanes.posting(lambda t: Finished(t * 2), "sp")(x)
    assert flight.ready()
    y = flight.wait() + 1
    assert bool((y == 3).all())


@pytest.mark.gpu
def test_a_rank_alone_on_an_axis_needs_no_stream():
    device = torch.device("cuda", torch.cuda.current_device())
    lanes = CudaLanes(device, alone=lambda axis: axis == "edp")
    assert lanes.posting(Finished, "edp/sync") is Finished
    assert lanes.posting(Finished, "dense/sync") is not Finished


@pytest.mark.gpu
def test_an_axis_has_one_stream():
    lanes = CudaLanes(torch.device("cuda", torch.cuda.current_device()))
    for axis in ("sp", "ep", "sp"):
        lanes.posting(Finished, axis)(torch.zeros(1, device=lanes.device))
    assert sorted(lanes.streams) == ["ep", "sp"]

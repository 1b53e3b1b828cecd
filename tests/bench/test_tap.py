"""A tap times bodies and waits without touching what they return."""

import time

import pytest
import torch

from weft.bench.tap import Scales, Tap, moved_bytes
from weft.comm.handle import Handle
from weft.runtime.lanes import HostLanes

CPU = torch.device("cpu")


def test_a_tapped_body_returns_what_the_body_returns_and_takes_its_attributes() -> None:
    tap = Tap(CPU)
    body = tap.bodies({"add": lambda x, y, *, by: x + y * by})["add"]
    assert body(1, 2, by=10) == 21
    assert [call.name for call in tap.empty()] == ["add"]
    assert tap.empty() == []


def test_a_call_is_timed() -> None:
    tap = Tap(CPU)
    tap.bodies({"nap": lambda: time.sleep(0.01)})["nap"]()
    (call,) = tap.empty()
    assert 10 <= call.watch.milliseconds() < 1000


def test_calls_of_one_name_add_up() -> None:
    tap = Tap(CPU)
    nap = tap.bodies({"nap": lambda: time.sleep(0.01)})["nap"]
    nap()
    nap()
    assert 20 <= tap.milliseconds()["nap"] < 1000
    assert tap.milliseconds() == {}


def test_a_wait_is_timed_under_its_axis() -> None:
    class Late(Handle):
        def ready(self) -> bool:
            return False

        def wait(self) -> torch.Tensor:
            time.sleep(0.01)
            return torch.ones(1)

    tap = Tap(CPU)
    handle = tap.lanes(HostLanes()).posting(lambda _x: Late(), "ep")(None)
    assert not handle.ready()
    assert tap.empty() == []
    assert float(handle.wait()) == 1
    (call,) = tap.empty()
    assert call.name == "wait.ep"
    assert call.watch.milliseconds() >= 10


def test_a_body_that_fails_leaves_no_call() -> None:
    def fail() -> None:
        raise ValueError

    tap = Tap(CPU)
    with pytest.raises(ValueError):  # noqa: PT011 - any will do
        tap.bodies({"fail": fail})["fail"]()
    assert tap.empty() == []


def test_bytes_count_operands_and_fresh_results_once() -> None:
    x = torch.zeros(4)
    assert moved_bytes((x, 3, None), torch.zeros(2)) == 16 + 8


def test_an_operand_updated_in_place_counts_twice() -> None:
    acc, x = torch.zeros(4), torch.zeros(2)
    assert moved_bytes((acc, x), acc) == 16 + 8 + 16


def test_a_view_as_a_result_moves_nothing() -> None:
    x = torch.zeros(4)
    assert moved_bytes((x,), (x[:2], x[2:])) == 16


def test_scales_add_up_what_each_body_moves() -> None:
    scales = Scales()
    body = scales.bodies({"double": lambda x: x * 2})["double"]
    assert torch.equal(body(torch.ones(4)), torch.full((4,), 2.0))
    body(torch.ones(2))
    assert scales.moved == {"double": 32 + 16}


@pytest.mark.gpu
def test_a_body_on_a_gpu_is_timed_on_its_stream() -> None:
    device = torch.device("cuda", 0)
    tap = Tap(device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        tap.bodies({"sleep": lambda: torch.cuda._sleep(10_000_000)})["sleep"]()
    (call,) = tap.empty()
    assert call.watch.milliseconds() > 1

"""A watched transport gives what the inner one gives, and tells of each collective in its order."""

import torch

from weft.comm.call import Call
from weft.comm.mesh import Mesh
from weft.comm.transports.stacked import StackedWorld
from weft.comm.transports.watched import Observer, WatchedTransport


class Heard(Observer):
    def __init__(self) -> None:
        self.said: list[object] = []

    def posting(self, call: Call, sequence: int) -> None:
        self.said.append(("post", call.label, sequence))

    def waiting(self, call: Call, sequence: int) -> None:
        self.said.append(("wait", call.label, sequence))

    def arrived(self) -> None:
        self.said.append("arrived")


def test_each_collective_is_told_and_arrives_unchanged() -> None:
    world = StackedWorld(Mesh(dp=2))
    heard = Heard()
    watched = WatchedTransport(world.transport(0), heard)
    other = world.transport(1)
    x = torch.arange(4.0)
    handle = watched.all_reduce(x, axis="dense", label="a")
    assert not handle.ready()
    other.all_reduce(x, axis="dense", label="a")
    assert handle.ready()
    assert handle.wait().tolist() == (2 * x).tolist()
    assert handle.wait() is handle.wait()
    watched.all_gather(x, axis="dense", label="b")
    assert heard.said == [("post", "a", 0), ("wait", "a", 0), "arrived", ("post", "b", 1)]


def test_a_group_of_one_tells_nothing_and_the_rest_is_the_inner_ones() -> None:
    heard = Heard()
    watched = WatchedTransport(StackedWorld(Mesh()).transport(0), heard)
    watched.all_reduce(torch.ones(1), axis="world", label="alone").wait()
    watched.reset_exposed()
    watched.barrier()
    watched.close()
    assert (watched.group_size("world"), watched.group_rank("world")) == (1, 0)
    assert watched.exposed_seconds() == 0.0
    assert heard.said == []

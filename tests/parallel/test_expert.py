import pytest

from weft.graph.backward import differentiate
from weft.graph.opset import Lane
from weft.graph.record import Recorder
from weft.parallel import expert


class Layer:
    """A dispatch and its combine around nothing, recorded."""

    def __init__(self, way: str) -> None:
        o = self.o = Recorder("p.forward")
        h, weights = o.input("h", "T D"), o.input("weights", "T k", "acc")
        experts = o.input("experts", "T k", "i64")
        match way:
            case "local":
                e = expert.dispatch_local(o, h, weights, experts, num_experts=8, top_k=2)
                z = expert.combine_local(o, e.rows, e, top_k=2)
            case "all_to_all":
                e = expert.dispatch_all_to_all(o, h, weights, experts, num_experts=8, top_k=2)
                z = expert.combine_all_to_all(o, e.rows, e, top_k=2)
            case "all_gather":
                e = expert.dispatch_all_gather(o, h, weights, experts, first=4, local=4, top_k=2)
                z = expert.combine_all_gather(o, e.rows, e, top_k=2)
            case "within":
                e = expert.dispatch_within(
                    o, h, weights, experts, rows=9, first=4, local=4, top_k=2
                )
                z = expert.combine_all_gather(o, e.rows, e, top_k=2)
        self.z, self.program = z, o.finish(z)

    def on(self, lane: Lane) -> list[str]:
        return [task.body for task in self.program.tasks if task.lane is lane]

    def back_on(self, lane: Lane) -> list[str]:
        backward = differentiate(self.program).backward
        return [task.body for task in backward.tasks if task.lane is lane]


WAYS = pytest.mark.parametrize("way", ["local", "all_to_all", "all_gather", "within"])


@WAYS
def test_tokens_come_back_as_tokens(way):
    assert Layer(way).z.dims == "T D"


def test_local_experts_communicate_nothing():
    assert Layer("local").on(Lane.COMM) == Layer("local").on(Lane.HOST) == []


def test_all_to_all_sends_counts_then_rows_and_weights_then_outputs():
    assert Layer("all_to_all").on(Lane.COMM) == [
        "all_to_all_counts", "all_to_all_rows", "all_to_all_weights", "all_to_all_rows",
    ]  # fmt: skip


def test_all_gather_reduces_and_scatters_the_outputs():
    assert Layer("all_gather").on(Lane.COMM) == [
        "all_gather_experts", "all_gather_weights", "all_gather", "reduce_scatter",
    ]  # fmt: skip


def test_room_for_a_number_of_rows_takes_the_same_wire_and_no_host():
    assert Layer("within").on(Lane.COMM) == Layer("all_gather").on(Lane.COMM)
    assert Layer("within").back_on(Lane.COMM) == Layer("all_gather").back_on(Lane.COMM)
    assert Layer("within").on(Lane.HOST) == Layer("within").back_on(Lane.HOST) == []


@pytest.mark.parametrize("way", ["all_to_all", "all_gather"])
def test_there_is_one_host_synchronisation_and_it_is_in_the_forward(way):
    assert len(Layer(way).on(Lane.HOST)) == 1
    assert Layer(way).back_on(Lane.HOST) == []


def test_the_backward_of_one_way_is_the_other_direction():
    assert Layer("all_to_all").back_on(Lane.COMM) == ["all_to_all_rows", "all_to_all_rows"]
    assert Layer("all_gather").back_on(Lane.COMM) == ["all_gather", "reduce_scatter"]


def test_rows_that_come_home_travel_in_reverse():
    tasks = [t for t in Layer("all_to_all").program.tasks if t.body == "all_to_all_rows"]
    assert [t.attributes["reverse"] for t in tasks] == [False, True]
    assert [t.attributes["label"] for t in tasks] == ["rows", "outputs"]

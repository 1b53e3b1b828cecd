from weft.graph.backward import differentiate
from weft.graph.opset import Lane
from weft.graph.record import Recorder
from weft.parallel.deduplicate import ByVisits


def recorded() -> Recorder:
    o, visits = Recorder("p.forward"), ByVisits(ranks=2, local=4, top_k=3)
    h, weights = o.input("h", "T D"), o.input("weights", "T k", "acc")
    e = visits.dispatch(o, h, weights, o.input("experts", "T k", "i64"))
    assert (e.rows.dims, e.row_weights.dims) == ("R D", "R")
    assert visits.combine(o, e.rows, e).dims == "T D"
    return o


def on(tasks, lane: Lane) -> list[str]:
    return [task.body for task in tasks if task.lane is lane]


def test_tokens_travel_with_their_choices_and_gates_and_come_back_as_sums():
    tasks = recorded().tasks
    assert on(tasks, Lane.COMM) == [
        "all_to_all_counts", "all_to_all_choices", "all_to_all_rows", "all_to_all_weights",
        "all_to_all_rows",
    ]  # fmt: skip
    assert [t.body for t in tasks].count("gather_sum") == 2


def test_there_is_one_host_synchronisation():
    assert on(recorded().tasks, Lane.HOST) == ["visits_to_host"]


def test_gradients_travel_once_a_rank_too():
    o = recorded()
    backward = differentiate(o.finish(o.values[o.tasks[-1].outputs[0]])).backward
    assert on(backward.tasks, Lane.COMM) == ["all_to_all_rows", "all_to_all_rows"]
    assert on(backward.tasks, Lane.HOST) == []

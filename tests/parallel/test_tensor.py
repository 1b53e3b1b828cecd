from types import SimpleNamespace

from weft.graph.backward import differentiate
from weft.graph.opset import Lane
from weft.graph.record import Recorder
from weft.parallel.layout import split_heads
from weft.parallel.tensor import HeadSlices, WidthSlices


def bodies(o: Recorder) -> list[str]:
    return [task.body for task in o.tasks]


def test_attention_gathers_tokens_and_scatters_sums():
    o = Recorder("p.forward")
    slices = HeadSlices(split=split_heads(4, 2, 2), sp_rank=1)
    w = SimpleNamespace(qkv=o.input("w.qkv", "P D"))
    qkv = slices.project_qkv(o, o.input("h", "T D"), w)
    assert qkv.dims == "N P"
    y = slices.project(o, o.input("a", "N M"), o.input("w.out", "D M"))
    assert y.dims == "T D"
    assert bodies(o) == ["all_gather", "qkv_project", "project", "reduce_scatter"]
    assert {task.group for task in o.tasks if "axis" in task.attributes} == {"sp"}


def test_ranks_that_share_a_head_take_it_from_a_whole_weight():
    o = Recorder("p")
    slices = HeadSlices(split=split_heads(8, 2, 4), sp_rank=3)
    w = SimpleNamespace(q=o.input("w.q", "M D"), kv=o.input("w.kv", "2 G C D"))
    assert slices.project_qkv(o, o.input("h", "T D"), w).dims == "N P"
    assert o.tasks[-1].body == "qkv_project_shared"
    assert dict(o.tasks[-1].attributes) == {"head": 1}


def feed_forward() -> Recorder:
    o, slices = Recorder("p.forward"), WidthSlices(num_experts=8, top_k=2)
    h, weights = o.input("h", "T D"), o.input("weights", "T k", "acc")
    e = slices.dispatch(o, h, weights, o.input("experts", "T k", "i64"))
    assert slices.enter(o, h).dims == "N D"
    assert slices.combine(o, e.rows, e).dims == "T D"
    return o


def test_routed_and_shared_experts_read_tokens_that_are_gathered_once():
    assert bodies(feed_forward()).count("all_gather") == 1


def test_tokens_of_another_layer_are_gathered_again():
    o, slices = Recorder("p"), WidthSlices(num_experts=8, top_k=2)
    first, second = o.input("h", "T D"), o.input("g", "T D")
    assert slices.enter(o, first) is slices.enter(o, first)
    assert slices.enter(o, second) is not slices.enter(o, first)


def test_a_sliced_feed_forward_needs_no_host_synchronisation():
    assert [task for task in feed_forward().tasks if task.lane is Lane.HOST] == []


def test_gate_weights_are_reduced_over_ranks_on_the_way_back():
    o = feed_forward()
    backward = differentiate(o.finish(o.values[o.tasks[-1].outputs[0]])).backward
    assert [t.body for t in backward.tasks if t.lane is Lane.COMM] == [
        "all_gather",
        "reduce_scatter",
    ]

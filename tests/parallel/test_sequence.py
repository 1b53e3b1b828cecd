from weft.graph.record import Recorder
from weft.parallel.layout import split_heads
from weft.parallel.sequence import heads_to_seq, seq_to_heads


def test_heads_come_by_one_all_to_all():
    o = Recorder("p")
    q, k, v = o.input("q", "T H C"), o.input("k", "T G C"), o.input("v", "T G C")
    made = seq_to_heads(o, q, k, v, sp=2, heads=4, kv_heads=2, split=split_heads(4, 2, 2))
    assert [task.body for task in o.tasks] == ["pack_heads", "all_to_all", "split_heads"]
    assert [value.dims for value in made] == ["N J C", "N K C", "N K C"]
    assert o.tasks[1].group == "sp"
    assert dict(o.tasks[2].attributes) == {"heads": 2, "kv_heads": 1}


def test_heads_go_home_by_one_all_to_all():
    o = Recorder("p")
    a = heads_to_seq(o, o.input("a", "N J C"), sp=2, split=split_heads(4, 2, 2))
    assert [task.body for task in o.tasks] == ["all_to_all", "join_heads"]
    assert o.values[o.tasks[0].outputs[0]].dims == "N J C"
    assert a.dims == "T A"

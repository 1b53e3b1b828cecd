from weft.graph.backward import differentiate
from weft.graph.opset import Lane
from weft.graph.record import Recorder
from weft.parallel.context import Zigzag

ZIGZAG = Zigzag(sp=2, heads=4, kv_heads=2, sequences=3)


def recorded() -> Recorder:
    o = Recorder("p.forward")
    q, k, v = o.input("q", "T H C"), o.input("k", "T G C"), o.input("v", "T G C")
    mine, *all_kv = ZIGZAG.seq_to_heads(o, q, k, v)
    assert mine is q
    assert [value.dims for value in all_kv] == ["N G C", "N G C"]
    a = ZIGZAG.attend(o, q, *all_kv, o.input("segments", "", "host"))
    assert (a.dims, ZIGZAG.heads_to_seq(o, a).dims) == ("T H C", "T A")
    return o


def test_keys_and_values_come_by_one_gather():
    bodies = [task.body for task in recorded().tasks]
    assert bodies == ["join_kv", "all_gather", "order_kv", "attention_part", "join_heads"]


def test_their_gradients_go_home_by_one_reduce_scatter():
    o = recorded()
    backward = differentiate(o.finish(o.values[o.tasks[-1].outputs[0]])).backward
    (sent,) = (task for task in backward.tasks if task.lane is Lane.COMM)
    assert (sent.body, sent.group) == ("reduce_scatter", "sp")

from types import SimpleNamespace

from weft.graph.record import Recorder
from weft.parallel.strategy import InPlace, attend_all, project_here, project_out


def test_a_feed_forward_in_place_moves_no_token():
    o, strategy = Recorder("p"), InPlace()
    h = o.input("h", "T D")
    assert strategy.leave(o, strategy.enter(o, h)) is h
    assert o.tasks == []
    assert strategy.renames == {}


def test_replicated_weights_project_the_tokens_that_are_here():
    o = Recorder("p")
    w = SimpleNamespace(qkv=o.input("w.qkv", "Q D"))
    assert project_here(o, o.input("h", "T D"), w).dims == "T Q"
    assert project_out(o, o.input("a", "T A"), o.input("w.out", "D A")).dims == "T D"


def test_attention_over_all_tokens_has_the_heads_that_are_here():
    o = Recorder("p")
    q, k, v = o.input("q", "N J C"), o.input("k", "N K C"), o.input("v", "N K C")
    assert attend_all(o, q, k, v, o.input("segments", "", "host")).dims == "N J C"

from weft.compose.instance import Instance, divided_instance, static_key, with_drops
from weft.graph.divide import divide
from weft.graph.record import Recorder


def instance(name: str, reads: dict[str, str], writes: dict[str, str]) -> Instance:
    return Instance(template=name, statics={}, reads=reads, writes=writes)


def test_a_key_dies_with_its_last_reader_and_an_unread_one_is_not_written():
    first = instance("a", {}, {"y": "m0.y", "z": "m0.z"})
    chain = (first, instance("b", {"x": "m0.y"}, {}), instance("c", {"x": "m0.y"}, {}))
    kept = with_drops(chain, keep=())
    assert kept[0].writes == {"y": "m0.y"}
    assert [i.drops for i in kept] == [(), (), ("m0.y",)]


def test_results_are_kept():
    (only,) = with_drops((instance("a", {}, {"y": "stats"}),), keep=("stats",))
    assert only.writes == {"y": "stats"}


def test_a_static_key_says_whose_it_is():
    assert static_key("acc.w.qkv", "layers.3") == "grad:layers.3.qkv"
    assert static_key("w.head", "") == "param:head"


def test_the_parts_of_a_divided_template_meet_under_a_key_of_their_own():
    o = Recorder("whole")
    x, w = o.input("x", "T D"), o.input("w.norm", "D")
    y, _ = o.call("rms_norm", x, w, eps=0.0)
    (z,) = o.call("add", y, x)
    program = o.finish(z)
    parts = divide(program, {"add"}, ("now", "then"))
    whole = Instance(
        template="whole",
        statics={"w.norm": "param:norm"},
        reads={"x": "m0.x"},
        writes={"z": "m0.z"},
    )
    now, then = divided_instance(whole, parts, "cut")
    assert now.statics == {"w.norm": "param:norm"}
    assert now.writes == {"y": "cut.y"}
    assert then.statics == {}
    assert then.reads == {"x": "m0.x", "y": "cut.y"}
    assert then.writes == {"z": "m0.z"}

"""Two programs side by side: names apart, wires joined, nothing lost."""

from weft.graph.braid import Strand, braid
from weft.graph.program import Program
from weft.graph.record import Recorder


def program(*, opens: bool = False) -> Program:
    o = Recorder("p")
    x, w, acc = o.input("x", "T D"), o.input("w.norm", "D"), o.input("acc.w.norm", "D", "acc")
    y, rstd = o.call("rms_norm", x, w, eps=1e-5)
    after = o.name_value("acc.w.norm'", "D", "acc")
    o.emit("rms_norm.wgrad", (acc.name, y.name, x.name, rstd.name), (after,), {"eps": 1e-5}, {})
    (z,) = o.call("all_to_all", y, axis="sp", label="z")
    return o.finish(z, after, opens=(z,) if opens else (), kept=(rstd.name,))


def pair(**wires: str) -> Program:
    one, two = Strand(tag="b", program=program(opens=True)), Strand(tag="f", program=program())
    return braid("b+f", one, two, wires)


def test_providers_stay_in_front_of_the_tag():
    assert pair().inputs == (
        "b.x", "w.b.norm", "acc.b.w.norm", "f.x", "w.f.norm", "acc.f.w.norm",
    )  # fmt: skip


def test_every_task_is_there_under_its_strand():
    names = [task.name for task in program().tasks]
    assert [t.name for t in pair().tasks] == [f"{tag}.{n}" for tag in "bf" for n in names]


def test_outputs_kept_and_open_values_of_both_remain():
    found = pair()
    assert found.outputs == ("b.y_2", "acc.b.w.norm'", "f.y_2", "acc.f.w.norm'")
    assert found.kept == ("b.rstd", "f.rstd")
    assert found.opens == ("b.y_2",)


def test_values_keep_their_shapes():
    found, alone = pair(), program()
    assert found.values["f.rstd"].dims == alone.values["rstd"].dims
    assert found.values["acc.b.w.norm'"].kind == "acc"
    assert found.values.keys() == {
        Strand(tag=tag, program=alone).name(v) for tag in "bf" for v in alone.values
    }


def test_a_wire_makes_an_input_of_one_an_output_of_the_other():
    one, two = Strand(tag="a", program=program()), Strand(tag="b", program=program())
    found = braid("a+b", one, two, {"x": "y_2"})
    assert "b.x" not in found.values
    second = next(task for task in found.tasks if task.name == "b.rms_norm")
    assert second.inputs[0] == "a.y_2"

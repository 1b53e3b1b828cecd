import pytest

from weft.errors import ProgramError
from weft.graph.record import Recorder


def test_the_first_value_of_a_name_has_no_number():
    o = Recorder("p")
    x = o.input("x", "T D")
    names = [o.call("add", x, x)[0].name for _ in range(3)]
    assert names == ["z", "z_2", "z_3"]


def test_a_name_taken_by_an_input_is_not_given_again():
    o = Recorder("p")
    z = o.input("z", "T D")
    (made,) = o.call("add", z, z)
    assert made.name != "z"


def test_an_input_declared_twice_is_refused():
    o = Recorder("p")
    o.input("x", "T D")
    with pytest.raises(ProgramError, match="input x declared twice"):
        o.input("x", "T D")


def test_a_wrong_number_of_operands_names_the_ports():
    o = Recorder("p")
    x = o.input("x", "T D")
    with pytest.raises(ProgramError, match=r"add takes \(x, y\), got \['x'\]"):
        o.call("add", x)


def test_an_unknown_operator_is_refused():
    with pytest.raises(ProgramError, match="unknown operator 'conv2d'"):
        Recorder("p").call("conv2d")


def test_renames_replace_whole_terms_of_the_outputs():
    o = Recorder("p")
    x, w = o.input("x", "T D"), o.input("w.up", "2W D")
    (u,) = o.call("project", x, w, renames={"A": "D", "D": "2W"})
    assert u.dims == "T 2W"


def test_attributes_of_a_recorded_task_cannot_change():
    o = Recorder("p")
    x = o.input("x", "T D")
    o.call("all_to_all", x, axis="sp", label="qkv")
    (task,) = o.tasks
    assert task.group == "sp"
    with pytest.raises(TypeError):
        task.attributes["axis"] = "ep"

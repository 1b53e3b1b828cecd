"""What stands around an encoded collective, by kind of collective and of scales."""

import pytest

from weft.errors import ProgramError
from weft.graph.backward import differentiate
from weft.graph.record import Recorder
from weft.schedule.encode import Channels, Ends, Rows, encode, weigh_after

ENDS = Ends(ranks=4, tokens=6, dtype="bfloat16")
TOKEN, CHANNEL = Rows(columns=32, width=32), Channels(group=128)
ROWS = {
    "all_to_all_rows": ["encode_rows", "all_to_all_packets", "decode_rows"],
    "all_gather": ["encode_rows", "all_gather_packets", "decode_rows"],
    "reduce_scatter": ["encode_rows", "all_to_all_blocks", "decode_row_sums"],
}
CHANNELS = {
    "all_to_all_rows": ["encode_channels", "all_to_all_groups", "decode_channels"],
    "all_gather": ["encode_blocks", "all_gather_packets", "decode_blocks"],
    "reduce_scatter": ["encode_blocks", "all_to_all_blocks", "decode_block_sums"],
}
DIMS = {  # what is sent, what arrives, what it becomes
    ("all_to_all_rows", TOKEN): ["O p", "R p", "R D"],
    ("all_gather", TOKEN): ["T p", "U p", "U D"],
    ("reduce_scatter", TOKEN): ["U p", "U p", "T D"],
    ("all_to_all_rows", CHANNEL): ["b D", "a D", "R D"],
    ("all_gather", CHANNEL): ["t D", "u D", "U D"],
    ("reduce_scatter", CHANNEL): ["u D", "u D", "T D"],
}


def crossing(body: str, *, reverse: bool = False):
    """A program that is one collective."""
    o = Recorder("p.forward")
    match body:
        case "all_to_all_rows":
            x = o.input("x", "R D" if reverse else "O D"), o.input("splits", "", "host")
            renames = {"O": "R", "R": "O"} if reverse else {}
            more = {"reverse": reverse, "renames": renames}
        case "all_gather":
            x, more = (o.input("x", "T D"),), {}
        case _:
            x, more = (o.input("x", "U D"),), {}
    (y,) = o.call(body, *x, axis="ep", label="rows", **more)
    return o.finish(y)


@pytest.mark.parametrize(("scales", "forms"), [(TOKEN, ROWS), (CHANNEL, CHANNELS)])
@pytest.mark.parametrize("body", ROWS)
def test_a_collective_becomes_encoding_crossing_and_decoding(body, scales, forms):
    plain = crossing(body)
    program = encode(plain, {(body, "rows"): scales}, ENDS)
    assert [task.body for task in program.tasks] == forms[body]
    assert (program.inputs, program.outputs) == (plain.inputs, plain.outputs)
    assert [program.values[t.outputs[0]].dims for t in program.tasks] == DIMS[body, scales]
    assert [program.values[t.outputs[0]].kind for t in program.tasks] == ["u8", "u8", "act"]
    middle = program.tasks[1]
    assert (middle.name, middle.group, middle.attributes["label"]) == (
        plain.tasks[0].name, "ep", "rows",
    )  # fmt: skip


@pytest.mark.parametrize("scales", [TOKEN, CHANNEL])
def test_the_way_back_has_the_rows_of_the_way_there_exchanged(scales):
    program = encode(
        crossing("all_to_all_rows", reverse=True), {("all_to_all_rows", "rows"): scales}, ENDS
    )
    sent, arrived, result = (program.values[t.outputs[0]].dims for t in program.tasks)
    wanted = ("R p", "O p", "O D") if scales is TOKEN else ("a D", "b D", "O D")
    assert (sent, arrived, result) == wanted
    assert program.tasks[1].attributes["reverse"] is True


def test_what_is_not_named_stays_as_it_is():
    plain = crossing("all_gather")
    assert encode(plain, {}, ENDS) == plain
    assert encode(plain, {("all_gather", "other"): TOKEN}, ENDS) == plain


def test_a_collective_without_an_encoded_form_is_refused():
    o = Recorder("p.forward")
    (y,) = o.call("all_to_all", o.input("x", "N P"), axis="sp", label="qkv")
    with pytest.raises(ProgramError, match="counted by 'N', which have no encoded form"):
        encode(o.finish(y), {("all_to_all", "qkv"): TOKEN}, ENDS)


def experts():
    o = Recorder("p.forward")
    u, weights, ends = (
        o.input("u", "R 2F"),
        o.input("weights", "R", "acc"),
        o.input("e", "L", "i32"),
    )
    (s,) = o.call("swiglu", u, weights, ends)
    (d,) = o.call("expert_down", s, o.input("w.down", "L D F"), ends)
    return o.finish(d)


def test_the_gate_weight_moves_behind_the_second_product():
    plain, moved = experts(), weigh_after(experts())
    assert [task.body for task in moved.tasks] == ["dense_swiglu", "weighted_down"]
    assert moved.tasks[1].inputs == (*plain.tasks[1].inputs, "weights")
    assert (moved.inputs, moved.outputs) == (plain.inputs, plain.outputs)


def test_the_gate_weight_of_clamped_experts_moves_too():
    o = Recorder("p.forward")
    u, weights = o.input("u", "R 2F"), o.input("weights", "R", "acc")
    (s,) = o.call("clamped_swiglu", u, weights, alpha=1.5, limit=7.0)
    (d,) = o.call("expert_down", s, o.input("w.down", "L D F"), o.input("e", "L", "i32"))
    moved = weigh_after(o.finish(d))
    assert [task.body for task in moved.tasks] == ["clamped_glu", "weighted_down"]
    assert moved.tasks[0].attributes == {"alpha": 1.5, "limit": 7.0}


def test_the_gradient_of_a_moved_weight_keeps_nothing_as_wide_as_a_row():
    derived = differentiate(weigh_after(experts()))
    assert [task.body for task in derived.backward.tasks] == [
        "weighted_down.dgrad", "weighted_down.wgrad", "dense_swiglu.dgrad",
    ]  # fmt: skip
    assert derived.forward.kept == ("s",)
    assert set(derived.backward.outputs) == {"d.u", "d.weights", "acc.w.down'"}

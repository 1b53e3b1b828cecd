"""A sequence of tasks as an order: started in turn, waited for as late as can be."""

from dataclasses import replace

import pytest

from weft.errors import ProgramError
from weft.graph.braid import Strand, braid
from weft.graph.program import Program, Task
from weft.graph.record import Recorder
from weft.schedule.action import Join, Post, Run, Wait
from weft.schedule.check import check
from weft.schedule.layer import serial, shuffled
from weft.schedule.sequence import in_sequence, interleaved, listed, starts, task_key


def chain(*, opens: bool = False) -> Program:
    o = Recorder("chain")
    x, y = o.input("x", "T D"), o.input("y", "T D")
    (a,) = o.call("add", x, y)
    (b,) = o.call("all_to_all", a, axis="sp", label="b")
    (c,) = o.call("add", x, y)
    if opens:
        return o.finish(b, c, opens=(b,), joins=(y,))
    return o.finish(o.call("add", b, c)[0])


def names(ordered) -> list[str]:
    return [
        f"{type(a).__name__.lower()} {a.value if isinstance(a, Join) else a.task.name}"
        for a in ordered.actions
        if isinstance(a, Run | Post | Wait | Join)
    ]


def test_a_collective_is_waited_for_at_its_first_reader():
    ordered = check(in_sequence(chain(), chain().tasks))
    assert names(ordered) == [
        "run add", "post all_to_all", "run add_2", "wait all_to_all", "run add_3",
    ]  # fmt: skip


def test_what_arrives_in_flight_is_joined_at_its_first_reader_and_what_leaves_is_not_waited_for():
    program = chain(opens=True)
    assert names(check(in_sequence(program, program.tasks))) == [
        "join y", "run add", "post all_to_all", "run add_2",
    ]  # fmt: skip


def test_a_collective_that_nobody_reads_is_waited_for_at_the_end():
    o = Recorder("p")
    (y,) = o.call("all_to_all", o.input("x", "N P"), axis="sp", label="b")
    program = o.finish(y)
    assert names(check(in_sequence(program, program.tasks))) == [
        "post all_to_all",
        "wait all_to_all",
    ]


def test_channels_issue_in_the_chosen_sequence():
    o = Recorder("p")
    x = o.input("x", "N P")
    (a,) = o.call("all_to_all", x, axis="sp", label="a")
    (b,) = o.call("all_to_all", x, axis="sp", label="b")
    program = o.finish(a, b)
    swapped = check(in_sequence(program, program.tasks[::-1]))
    assert [t.attributes["label"] for t in starts(swapped)] == ["b", "a"]
    assert swapped.program.tasks == program.tasks[::-1]


def test_a_task_before_what_it_reads_is_refused():
    with pytest.raises(ProgramError, match="reads .* before it is made"):
        in_sequence(chain(), chain().tasks[::-1])


@pytest.mark.parametrize("seed", range(5))
def test_the_starts_of_an_order_are_its_sequence(seed):
    ordered = shuffled(chain(), seed)
    assert starts(in_sequence(chain(), starts(ordered))) == starts(ordered)


def test_a_list_pulls_what_a_task_depends_on_and_leaves_the_rest_for_the_end():
    o = Recorder("p")
    x, w = o.input("x", "T D"), o.input("w.norm", "D")
    (a,) = o.call("add", x, x)
    y, _ = o.call("rms_norm", x, w, eps=1e-5)
    (b,) = o.call("add", a, y)
    (c,) = o.call("all_to_all", b, axis="sp", label="qkv")
    program = o.finish(c, o.call("add", x, x)[0])
    tasks = listed(program, ("nothing of this", "rms_norm norm", "all_to_all qkv"))
    assert [task.name for task in tasks] == ["rms_norm", "add", "add_2", "all_to_all", "add_3"]


@pytest.mark.parametrize(
    ("name", "body", "inputs", "attributes", "key"),
    [
        ("all_to_all", "all_to_all", ("x",), {"axis": "sp", "label": "qkv"}, "all_to_all qkv"),
        ("again.swiglu", "swiglu", ("u", "r"), {}, "again swiglu"),
        ("project.wgrad_2", "project.wgrad", ("acc.w.out", "d.x", "a"), {}, "project.wgrad out"),
        ("project.dgrad", "project.dgrad", ("d.x", "w.out"), {}, "project.dgrad out"),
    ],
)
def test_a_task_has_a_key_in_a_list(name, body, inputs, attributes, key):
    task = Task(name=name, body=body, inputs=inputs, outputs=(), attributes=attributes)
    assert task_key(task) == key


def test_strands_take_turns_by_the_share_of_their_own_time():
    one, two = Strand(tag="b", program=chain()), Strand(tag="f", program=chain())
    mixed = interleaved(braid("pair", one, two), lambda _: 1.0)
    strands = [task.name[0] for task in mixed.tasks]
    assert strands == ["b", "f"] * 4
    check(serial(mixed))


def test_the_key_of_a_chunk_says_so():
    def made(name: str, body: str, **attributes: str) -> Task:
        return Task(name=name, body=body, inputs=("x", "w.out"), outputs=(), attributes=attributes)

    assert task_key(made("project/1", "project")) == "project out 1"
    first, second = (
        made(f"all_to_all/{i}", "all_to_all", axis="sp", label="qkv") for i in range(2)
    )
    assert [task_key(first), task_key(second)] == ["all_to_all qkv", "all_to_all qkv later"]


def test_a_later_chunk_goes_with_the_first_one_where_the_list_does_not_say_otherwise():
    o = Recorder("chunks")
    x = o.input("x", "T D")
    parts = [o.call("all_gather", x, axis="ep", label="tokens")[0] for _ in range(2)]
    program = o.finish(*parts, *o.call("add", x, x))
    one, two, add = program.tasks
    named = replace(
        program, tasks=(replace(one, name="all_gather/0"), replace(two, name="all_gather/1"), add)
    )

    def order(*keys: str) -> list[str]:
        return [task.name for task in listed(named, keys)]

    assert order("all_gather tokens", "add") == ["all_gather/0", "all_gather/1", "add"]
    apart = order("all_gather tokens", "add", "all_gather tokens later")
    assert apart == ["all_gather/0", "add", "all_gather/1"]

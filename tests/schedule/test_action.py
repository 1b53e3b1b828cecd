from weft.graph.program import Program
from weft.graph.record import Recorder
from weft.schedule.action import Action, Free, Post, Run, Wait, is_collective, with_frees


def exchange() -> Program:
    o = Recorder("p")
    x, w, acc = o.input("x", "T D"), o.input("w.a", "T D"), o.input("acc.a", "Z", "acc")
    (a,) = o.call("add", x, w)
    (b,) = o.call("all_to_all", a, axis="sp", label="b")
    (c,) = o.call("add", b, b)
    (shard,) = o.call("reduce_scatter_grad", acc, axis="dense", label="gradients")
    return o.finish(c, shard)


def frees_after(actions: tuple[Action, ...], position: int) -> list[str]:
    found = []
    for action in actions[position + 1 :]:
        if not isinstance(action, Free):
            break
        found.append(action.value)
    return found


def test_what_a_collective_reads_lives_until_its_wait():
    program = exchange()
    add, a2a, add_2, scatter = program.tasks
    actions = with_frees(
        program, [Run(add), Post(a2a), Post(scatter), Wait(a2a), Run(add_2), Wait(scatter)]
    )
    assert frees_after(actions, actions.index(Run(add))) == ["x"]
    assert frees_after(actions, actions.index(Post(a2a))) == []
    assert frees_after(actions, actions.index(Wait(a2a))) == ["z"]


def test_outputs_and_static_tensors_are_never_freed():
    program = exchange()
    serial = [
        action
        for task in program.tasks
        for action in ([Post(task), Wait(task)] if is_collective(task) else [Run(task)])
    ]
    freed = {a.value for a in with_frees(program, serial) if isinstance(a, Free)}
    assert freed == {"x", "z", "y"}


def test_a_result_that_nobody_reads_dies_at_once():
    o = Recorder("p")
    x, w = o.input("x", "T D"), o.input("w.norm", "D")
    y, rstd = o.call("rms_norm", x, w)
    program = o.finish(y)
    actions = with_frees(program, [Run(program.tasks[0])])
    assert Free(rstd.name) in actions

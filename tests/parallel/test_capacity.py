"""A limit on groups of experts: decided from all tokens, and the rows of what is kept alone."""

import pytest

from weft.graph.record import Recorder
from weft.parallel import expert
from weft.parallel.capacity import Limit, Share, keep_within


def recorded(sp: int):
    o = Recorder("p.forward")
    logits, experts = o.input("logits", "T E", "acc"), o.input("experts", "T k", "i64")
    kept, dropped = keep_within(
        o, logits, experts,
        limit=Limit(groups=4, capacity=3), share=Share(first=6, tokens=6, sp=sp),
        score="softmax", num_experts=8,
    )  # fmt: skip
    return o.finish(kept, dropped)


@pytest.mark.parametrize(("sp", "gathers"), [(1, 0), (2, 2)])
def test_scores_and_choices_are_gathered_over_the_ranks_of_a_micro_batch(sp, gathers):
    tasks = recorded(sp).tasks
    assert [t.group for t in tasks if t.body.startswith("all_gather")] == ["sp"] * gathers
    assert dict(tasks[-1].attributes) == {
        "experts": 8, "groups": 4, "capacity": 3, "first": 6, "tokens": 6,
    }  # fmt: skip


def test_what_is_gathered_is_the_whole_micro_batch():
    program = recorded(2)
    scores, experts = program.tasks[-1].inputs
    assert (program.values[scores].dims, program.values[experts].dims) == ("N k", "N k")


@pytest.mark.parametrize("way", ["local", "all_to_all"])
def test_rows_of_kept_choices_wait_for_their_number_once(way):
    o = Recorder("p.forward")
    operands = o.input("h", "T D"), o.input("weights", "T k", "acc"), o.input("e", "T k", "i64")
    made = {"local": expert.dispatch_local, "all_to_all": expert.dispatch_all_to_all}[way]
    e = made(o, *operands, num_experts=8, top_k=2, plan=expert.plan_kept)
    bodies = [task.body for task in o.finish(e.rows).tasks]
    assert bodies[:3] == ["count_local", "rows_to_host", "plan_local"]
    assert "plan_rows" not in bodies

"""The table of sizes decides alike on every member."""

import json
from pathlib import Path

import torch

from weft.comm.call import Call, Collective
from weft.comm.crossover import Crossover, Sizes, describe, everything, measured


def call(collective, *shape, **splits):
    return Call(
        collective=collective, axis="ep", lane="comm", label="x", shape=shape,
        dtype=torch.float32, **splits,
    )  # fmt: skip


def table(**sizes):
    found = {Collective(name): Sizes(**row) for name, row in sizes.items()}
    return Crossover(sizes=found, machine="", record="")


def test_both_ends_of_a_range_are_in_it():
    rule = table(all_gather={"least": 8, "most": 16}).takes
    took = [rule(call(Collective.ALL_GATHER, n), 2) for n in (1, 2, 4, 5)]
    assert took == [False, True, True, False]


def test_it_is_what_arrives_that_counts_and_not_what_is_put_in():
    rule = table(all_gather={"least": 16}, reduce_scatter={"least": 16}).takes
    assert rule(call(Collective.ALL_GATHER, 2), 3)
    assert not rule(call(Collective.REDUCE_SCATTER, 4), 4)


def test_ragged_rows_go_one_way_whatever_their_number():
    few = call(Collective.ALL_TO_ALL_ROWS, 1, send=(1, 0), receive=(1, 0))
    assert table(all_to_all_rows={"least": 0}).takes(few, 2)
    assert not table(all_to_all_rows={"least": 1}).takes(few, 2)


def test_what_is_not_in_the_table_goes_the_other_way():
    assert not table().takes(call(Collective.ALL_GATHER, 2), 2)


def test_messages_never_go_over_peer_memory():
    message = call(Collective.SEND, 2)
    assert not everything().takes(message, 2)
    assert not measured().takes(message, 2)


def test_everything_else_goes_over_it_if_asked_for():
    assert set(everything().sizes) == set(Collective) - {Collective.SEND, Collective.RECEIVE}
    assert everything().takes(call(Collective.ALL_TO_ALL_ROWS, 1, send=(1, 0), receive=(1, 0)), 2)


def test_what_the_table_of_weft_takes_is_on_record():
    found = measured()
    assert found.machine
    if found.sizes:
        lines = (Path(__file__).parents[2] / found.record).read_text(encoding="utf-8").splitlines()
        assert {json.loads(line)["bench"] for line in lines} == {"comm"}


def test_an_empty_table_is_said_to_take_nothing():
    assert describe(Crossover(sizes={}, machine="not measured yet", record="")) == (
        "nothing (not measured yet)"
    )

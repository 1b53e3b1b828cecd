"""The table of sizes decides alike on every member."""

import json
from math import inf
from pathlib import Path

import pytest
import torch

from weft.comm.call import Call, Collective, received_bytes
from weft.comm.crossover import Crossover, Sizes, describe, everything, measured, takes
from weft.comm.kernel import MOST_BYTES

MOVES = (Collective.ALL_GATHER, Collective.REDUCE_SCATTER, Collective.ALL_TO_ALL)
GRADIENTS = {"gradients": "all_to_all_sum"}


def call(collective, *shape, **splits):
    return Call(
        collective=collective, axis="ep", lane="comm", label="x", shape=shape,
        dtype=torch.float32, **splits,
    )  # fmt: skip


def table(**sizes):
    return {Collective(name): Sizes(**row) for name, row in sizes.items()}


def test_both_ends_of_a_range_are_in_it():
    rule = table(all_gather={"least": 8, "most": 16})
    took = [takes(rule, call(Collective.ALL_GATHER, n), 2) for n in (1, 2, 4, 5)]
    assert took == [False, True, True, False]


def test_it_is_what_arrives_that_counts_and_not_what_is_put_in():
    rule = table(all_gather={"least": 16}, reduce_scatter={"least": 16})
    assert takes(rule, call(Collective.ALL_GATHER, 2), 3)
    assert not takes(rule, call(Collective.REDUCE_SCATTER, 4), 4)


def test_ragged_rows_go_one_way_whatever_their_number():
    few = call(Collective.ALL_TO_ALL_ROWS, 1, send=(1, 0), receive=(1, 0))
    assert takes(table(all_to_all_rows={"least": 0}), few, 2)
    assert not takes(table(all_to_all_rows={"least": 1}), few, 2)


def test_what_is_not_in_the_table_goes_the_other_way():
    assert not takes(table(), call(Collective.ALL_GATHER, 2), 2)


@pytest.mark.parametrize("rule", [everything(), measured()])
def test_messages_never_go_over_peer_memory(rule):
    message = call(Collective.SEND, 2)
    assert not takes(rule.kernels, message, 2)
    assert not takes(rule.copies, message, 2)


def test_everything_else_goes_over_it_if_asked_for():
    assert set(everything().copies) == set(Collective) - {Collective.SEND, Collective.RECEIVE}
    rows = call(Collective.ALL_TO_ALL_ROWS, 1, send=(1, 0), receive=(1, 0))
    assert takes(everything().copies, rows, 2)


# ---- what weft brings along ----------------------------------------------------------------------


def test_ragged_rows_stay_on_the_other_wire():
    rows = call(Collective.ALL_TO_ALL_ROWS, 1 << 28, send=(1 << 28, 0), receive=(1 << 28, 0))
    assert not takes(measured().kernels, rows, 2)
    assert not takes(measured().copies, rows, 2)


def medians():
    """What is on record last: collective, bytes that each of two members receives, medians of NCCL,
    one kernel and copies.
    """
    text = (Path(__file__).parents[2] / measured().record).read_text(encoding="utf-8")
    found = {}
    for row in map(json.loads, text.splitlines()):
        took = {wire: one["us"]["median"] for wire, one in row["wires"].items()}
        nccl = min(us for wire, us in took.items() if wire.startswith("NCCL"))
        peers = [us for wire, us in took.items() if wire.startswith(("one kernel", "symmetric"))]
        if len(peers) == 2:  # earlier ones are of other kernels, which took less
            name = Collective(GRADIENTS.get(row["collective"], row["collective"]))
            found[name, row["received_bytes"]] = (name, row["received_bytes"], nccl, *peers)
    return list(found.values())


def call_that_brings(collective, num_bytes):
    """A call that brings each of two members so many bytes, which are a block."""
    whole = collective in (Collective.ALL_GATHER, Collective.ALL_REDUCE)
    found = call(collective, num_bytes // 4 if whole else num_bytes // 2)
    assert received_bytes(found, size=2, position=0) == num_bytes
    return found


def chosen(rule, most):
    """What of the record goes over peer memory, where kernels take blocks up to `most`: what it
    takes there and over NCCL.
    """
    found = []
    for collective, size, nccl, kernel, copies in medians():
        one = call_that_brings(collective, size)
        if size <= most and takes(rule.kernels, one, 2):
            found.append((kernel, nccl))
        elif takes(rule.copies, one, 2):
            found.append((copies, nccl))
    return found


@pytest.mark.parametrize(("most", "count"), [(0, 10), (1 << 20, 16), (MOST_BYTES, 19), (inf, 19)])
def test_what_goes_over_peer_memory_is_faster_there_with_kernels_and_without(most, count):
    found = chosen(measured(), most)
    assert len(found) == count
    assert all(peers < nccl for peers, nccl in found)


def test_copies_of_all_sizes_are_not_what_was_measured():
    """The control."""
    rule = measured()
    wrong = Crossover(kernels={}, copies=rule.kernels, machine="", record="")
    assert any(peers > nccl for peers, nccl in chosen(wrong, 0))


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("collective", [*MOVES, Collective.ALL_TO_ALL_SUM])
def test_what_is_too_long_for_a_kernel_is_long_enough_for_copies(collective, size):
    blocks = 1 if collective is Collective.ALL_GATHER else size
    longer = call(collective, blocks * (MOST_BYTES // 4 + 1))
    assert takes(measured().copies, longer, size)


def test_empty_tables_are_said_to_take_nothing():
    assert describe(Crossover(kernels={}, copies={}, machine="not measured yet", record="")) == (
        "by one kernel nothing; by copies nothing (not measured yet)"
    )

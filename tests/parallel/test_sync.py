from itertools import product

import pytest

from weft.graph.program import Program
from weft.graph.record import Recorder
from weft.parallel import sync
from weft.parallel.layout import Layout, Leg
from weft.parallel.sync import Wire, shard_index

FLAT = (Leg(axis="dense", ranks=4),)
NODES = (Leg(axis="dense_intra", ranks=2), Leg(axis="dense_inter", ranks=4))


def reduced(legs: tuple[Leg, ...], wire: Wire, place: int = 0) -> Program:
    o = Recorder("reduce")
    return o.finish(sync.reduce(o, o.input("acc.b", "64", "acc"), legs, wire=wire, place=place))


def gathered(legs: tuple[Leg, ...], place: int) -> Program:
    o = Recorder("gather")
    updated, bucket = o.input("s.b", "8", "acc"), o.input("w.b", "64")
    return o.finish(sync.gather(o, updated, bucket, legs, place=place))


def bodies(program: Program) -> list[str]:
    return [task.body for task in program.tasks]


@pytest.mark.parametrize("legs", [FLAT, NODES, (*NODES[:1], Leg(axis="x", ranks=1))])
def test_every_replica_owns_another_shard(legs):
    ranks = [range(leg.ranks) for leg in legs]
    owned = {shard_index(legs, place) for place in range(len(list(product(*ranks))))}
    assert owned == set(range(len(owned)))


def test_uncompressed_gradients_are_scattered_leg_by_leg():
    program = reduced(NODES, Wire.FP32)
    assert bodies(program) == ["reduce_scatter_grad"] * 2
    assert [task.group for task in program.tasks] == ["dense_intra", "dense_inter"]
    assert [program.values[task.outputs[0]].dims for task in program.tasks] == ["32", "8"]


def test_only_what_crosses_between_nodes_is_compressed():
    program = reduced(NODES, Wire.BF16)
    assert bodies(program) == [
        "reduce_scatter_grad",
        "encode_grad",
        "all_to_all_grad",
        "decode_grad",
    ]
    assert program.tasks[2].group == "dense_inter"
    kinds = [program.values[task.outputs[0]].kind for task in program.tasks]
    assert kinds == ["acc", "bf16", "bf16", "acc"]


def test_one_node_has_nothing_to_compress():
    alone = (Leg(axis="dense_intra", ranks=4), Leg(axis="dense_inter", ranks=1))
    assert bodies(reduced(alone, Wire.BF16)) == ["reduce_scatter_grad"] * 2


@pytest.mark.parametrize("place", range(4))
def test_a_ring_ends_with_the_block_that_the_rank_owns(place):
    program = reduced(FLAT, Wire.BF16_RING, place)
    assert bodies(program).count("pass_on") == 3
    blocks = [task.attributes["block"] for task in program.tasks if "block" in task.attributes]
    assert len(set(blocks)) == 4
    assert blocks[-1] == place


def test_a_ring_between_nodes_knows_the_place_of_its_node():
    blocks = [
        task.attributes["block"]
        for task in reduced(NODES, Wire.BF16_RING, 5).tasks  # second of node 2
        if "block" in task.attributes
    ]
    assert blocks[-1] == 2


def test_parameters_come_home_between_nodes_first():
    program = gathered(NODES, place=3)
    assert bodies(program) == ["gather_block", "gather_params"]
    assert [task.group for task in program.tasks] == ["dense_inter", "dense_intra"]
    assert program.tasks[0].attributes["first"] == 32, "the second half is that of place 1 of 2"
    assert bodies(gathered(FLAT, place=3)) == ["gather_params"]


def test_experts_of_a_node_that_holds_them_once_cross_between_nodes_only():
    near, far = Layout(dp=4, sp=2, ep=4, node=4).legs("edp")
    assert (near.ranks, far.ranks) == (1, 2)

"""Every rule of the edges between segments is broken once by a planted fault, and named."""

from dataclasses import replace

import pytest

from weft.compose.check import check_edges
from weft.compose.instance import Instance
from weft.errors import ProgramError
from weft.graph.program import Program
from weft.graph.record import Recorder
from weft.model.params import Parameter
from weft.parallel.layout import Layout
from weft.parallel.zero import buckets

WEIGHT = Parameter(name="layers.0.out", segment="layers.0", shape=(8,), parts=())
BUCKETS = buckets((WEIGHT,), Layout(dp=2), most=10**9)
(BUCKET,) = (bucket.name for bucket in BUCKETS)


def posting() -> Program:
    o = Recorder("posting")
    grad = o.input("acc.bucket", "Z", "acc")
    (shard,) = o.call("reduce_scatter_grad", grad, axis="dense", label="gradients")
    return o.finish(shard, opens=(shard,))


def joining(*, joins: bool = True) -> Program:
    o = Recorder("joining")
    shard, norm2 = o.input("shard", "z", "acc"), o.input("s.norm2", "1", "acc")
    return o.finish(*o.call("square_sum", shard, norm2), joins=(shard,) if joins else ())


def working() -> Program:
    o = Recorder("working")
    x, acc = o.input("x", "T D"), o.input("acc.w.out", "D", "acc")
    o.call("add", x, x)
    return o.finish(acc)


PROGRAMS = {p.name: p for p in (posting(), joining(), working())}
POST = Instance(
    template="posting",
    statics={"acc.bucket": f"gradients:{BUCKET}"},
    reads={},
    writes={"shard": "shard 0"},
)
JOIN = Instance(
    template="joining", statics={"s.norm2": "stats:norm2"}, reads={"shard": "shard 0"}, writes={}
)
WORK = Instance(template="working", statics={}, reads={"x": "m0.x"}, writes={})


def refused(*instances: Instance, programs: dict[str, Program] = PROGRAMS) -> str:
    with pytest.raises(ProgramError) as error:
        check_edges(instances, programs, BUCKETS)
    return str(error.value)


def test_a_collective_may_fly_over_segments_that_leave_it_alone():
    instances = (POST, WORK, WORK, JOIN)
    assert check_edges(instances, PROGRAMS, BUCKETS) is instances


def test_what_is_posted_must_be_joined():
    assert "leaves shard 0 in flight and nobody joins it" in refused(POST, WORK)


def test_what_is_posted_must_travel_under_a_key():
    message = refused(replace(POST, writes={}), JOIN)
    assert message == (
        "instance 0, posting: reduce_scatter_grad leaves shard in flight and nobody joins it"
    )


def test_it_is_joined_once():
    assert "instance 2, joining: joins shard 0, which is not in flight" in refused(POST, JOIN, JOIN)


def test_it_is_not_read_where_it_was_joined_before():
    programs = {**PROGRAMS, "reading": replace(joining(joins=False), name="reading")}
    message = refused(POST, JOIN, replace(JOIN, template="reading"), programs=programs)
    assert "reads shard 0 as shard, which an earlier segment has joined" in message


def test_it_is_not_joined_before_it_is_posted():
    assert "instance 0, joining: joins shard 0, which is not in flight" in refused(JOIN, POST)


def test_nobody_reads_it_in_flight():
    programs = {**PROGRAMS, "joining": joining(joins=False)}
    message = refused(POST, JOIN, programs=programs)
    assert "reads shard 0 as shard while reduce_scatter_grad is in flight" in message


def test_nobody_writes_under_its_key():
    other = replace(POST, statics={"acc.bucket": "gradients:embed.dense"})
    assert "writes shard 0 while reduce_scatter_grad is in flight" in refused(POST, other, JOIN)


def test_a_bucket_on_its_way_is_not_added_to():
    adding = replace(WORK, statics={"acc.w.out": "grad:layers.0.out"})
    message = refused(POST, adding, JOIN)
    assert "touches grad:layers.0.out while reduce_scatter_grad of gradients:" in message
    assert check_edges((adding, POST, JOIN, adding), PROGRAMS, BUCKETS)

"""Every way of keeping replicas in step gives what one flat sum gives, or is off by its rounding.

Uncompressed in float64: within 1e-12 of the flat sum and 1e-10 of one rank. Compressed in float32:
a rounding to bfloat16 for each term and none for the sum.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from weft.comm.call import Call, Collective
from weft.comm.handle import Handle
from weft.comm.mesh import Mesh
from weft.comm.transport import Transport
from weft.comm.transports.counting import CountingTransport
from weft.comm.transports.gloo import GlooTransport
from weft.compose.plan import Plan
from weft.compose.step import training_step
from weft.errors import VerificationError
from weft.ops.registry import cpu_bodies, reference_bodies
from weft.parallel.layout import Dispatch, Layout
from weft.parallel.sync import Sync, Wire
from weft.runtime.executor import run_together
from weft.runtime.stage import Rates, Stage, build
from weft.runtime.state import initialise
from weft.testing import models
from weft.testing.agreement import (
    Trace,
    Work,
    compare,
    count_targets,
    first_difference,
    gather_state,
    local_micro_batches,
    require_agreement,
    run_layout,
    share,
    stack,
    train,
)
from weft.testing.ranks import run_ranks
from weft.testing.routing import balanced
from weft.testing.sabotage import drop_nodes
from weft.testing.tolerance import relative_error
from weft.testing.wire import predict

BODIES = {**reference_bodies(), **cpu_bodies()}
SMALL = 1000  # elements of a bucket, so that experts are cut in several
FLAT = {
    "dp4": Layout(dp=4),
    "dp4 sp2 ep2": Layout(dp=4, sp=2, ep=2),
    "dp4 sp2 ep4": Layout(dp=4, sp=2, ep=4, dispatch=Dispatch.ALL_GATHER),
}
NODES = [("dp4", 2), ("dp4 sp2 ep2", 4), ("dp4 sp2 ep4", 2)]


def plan_of(
    sync: Sync, *, precision: str = "float64", order: str = "overlapped", replay: bool = False
) -> Callable[[Layout, int], Plan]:
    def planned(layout: Layout, rank: int) -> Plan:
        made = models.plan(
            models.FAMILIES["mixtral"], layout, rank, order=order, precision=precision,
            replay=replay,
        )  # fmt: skip
        return replace(made, sync=sync)

    return planned


def work(steps: int = 2) -> Work:
    return Work(batches=partial(models.batches, models.FAMILIES["mixtral"]), steps=steps)


@cache
def run(layout: Layout, sync: Sync, *, precision: str = "float64", order: str = "serial") -> Trace:
    plans = plan_of(sync, precision=precision, order=order)
    return run_layout(plans, layout, work(), bodies=BODIES)


@pytest.mark.parametrize(("at", "node"), NODES)
def test_the_hierarchy_gives_what_one_flat_sum_gives(at, node):
    layout = replace(FLAT[at], node=node)
    found, flat = run(layout, Sync(bucket=SMALL)), run(FLAT[at], Sync())
    require_agreement(found, flat, loss=1e-12, gradient=1e-12)
    assert compare(found.state, flat.state).error < 1e-12
    require_agreement(found, run(Layout(), Sync()))


@pytest.mark.parametrize("at", ["dp4", "dp4 sp2 ep2"])
@pytest.mark.parametrize("node", [0, 2])
def test_gradients_summed_in_shards_give_what_one_rank_gives(at, node):
    layout = replace(FLAT[at], node=node)
    serial = run(layout, Sync(zero=2, bucket=SMALL))
    require_agreement(serial, run(Layout(), Sync()))
    found = run(layout, Sync(zero=2, bucket=SMALL), order="overlapped")
    assert first_difference(found, serial) is None


def test_buckets_of_any_size_differ_by_the_rounding_of_the_norm_alone():
    found, whole = run(FLAT["dp4"], Sync(bucket=SMALL)), run(FLAT["dp4"], Sync())
    require_agreement(found, whole, loss=1e-14, gradient=1e-14)


@pytest.mark.parametrize("zero", [1, 2])
@pytest.mark.parametrize("wire", Wire)
def test_the_overlapped_order_of_a_wire_gives_the_bits_of_the_serial_one(wire, zero):
    layout, sync = Layout(dp=2, ep=2, node=1), Sync(gradients=wire, bucket=SMALL, zero=zero)
    serial = run(layout, sync, precision="float32")
    found = run(layout, sync, precision="float32", order="overlapped")
    assert first_difference(found, serial) is None


@pytest.mark.parametrize("to", [(Sync(zero=2, bucket=SMALL), 2), (Sync(), 4)])
def test_state_moves_bit_by_bit_between_ways_of_keeping_replicas_in_step(to):
    sync, node = to
    plans = plan_of(Sync(), precision="bfloat16")
    source = stack(plans, Layout(dp=4, ep=2), bodies=BODIES)
    train(source, work())
    whole = gather_state(source.stages)
    goal = stack(
        plan_of(sync, precision="bfloat16"), Layout(dp=4, ep=2, node=node), bodies=BODIES, seed=1
    )
    for stage in goal.stages:
        for kind, piece, values in stage.state.shards():
            values.copy_(whole[f"{kind} {piece.name}"][piece.start : piece.stop])
    run_together([s.gathers for s in goal.stages], [{} for _ in goal.stages], goal.world.pending)
    found = gather_state(goal.stages)
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    for ours, theirs in zip(goal.stages, source.stages, strict=True):
        assert all(
            torch.equal(ours.state.statics[key], value)
            for key, value in theirs.state.statics.items()
            if key.startswith("param:")
        )


# ---- compressed ----------------------------------------------------------------------------------


def moments(layout: Layout, wire: Wire) -> Mapping[str, torch.Tensor]:
    """First moments after one step, unclipped: the gradients as the optimizer met them."""
    plans = plan_of(Sync(gradients=wire), precision="float32")

    def unclipped(at: Layout, rank: int) -> Plan:
        made = plans(at, rank)
        return replace(made, update=replace(made.update, clip_norm=1e9))

    state = run_layout(unclipped, layout, work(steps=1), bodies=BODIES).state
    return {name: value for name, value in state.items() if name.startswith("mean ")}


def test_a_compressed_gradient_is_off_by_a_rounding_of_its_terms():
    layout = Layout(dp=4)
    exact, found, ring = (moments(layout, wire) for wire in Wire)
    for name, value in exact.items():
        assert 0 < relative_error(found[name], value) < 2**-8, name
    whole = torch.cat([*exact.values()])
    errors = [relative_error(torch.cat([*some.values()]), whole) for some in (found, ring)]
    assert errors[0] < 0.002 < errors[1], "one rounding a term against one a hop"


def test_what_is_compressed_is_off_for_one_node_of_all_ranks_only_by_nothing():
    layout = Layout(dp=4, node=4)
    exact, found = moments(layout, Wire.FP32), moments(layout, Wire.BF16)
    assert all(torch.equal(found[name], value) for name, value in exact.items())


class Summing(Transport):
    """A transport that rounds and sums gradients itself; or, sabotaged, forgets the last term."""

    def __init__(self, inner: Transport, *, forgets: bool = False) -> None:
        self.inner, self.forgets, self.sums = inner, forgets, 0
        self.group_size, self.group_rank = inner.group_size, inner.group_rank
        self.barrier, self.close, self.describe = inner.barrier, inner.close, inner.describe
        self.exposed_seconds, self.reset_exposed = inner.exposed_seconds, inner.reset_exposed

    def group_size(self, axis: str) -> int: ...
    def group_rank(self, axis: str) -> int: ...
    def barrier(self) -> None: ...
    def close(self) -> None: ...
    def exposed_seconds(self) -> float: ...
    def reset_exposed(self) -> None: ...
    def describe(self) -> str: ...

    def sums_on_arrival(self) -> bool:
        return True

    def post(self, call: Call, x: torch.Tensor, out: torch.Tensor) -> Handle:
        summed = call.collective is Collective.ALL_TO_ALL_SUM
        self.sums += summed
        if summed and self.forgets and self.inner.group_rank(call.axis) == 0:
            x = x.clone()
            x[: x.numel() // self.inner.group_size(call.axis)] = 0
        return self.inner.post(call, x, out)


def trained(sync: Sync, layout: Layout, wire: Callable[[Transport], Transport]) -> Trace:
    plans = plan_of(sync, precision="float32", order="overlapped")
    return train(stack(plans, layout, bodies=BODIES, wire=wire), work())


@pytest.mark.parametrize("zero", [1, 2])
@pytest.mark.parametrize("node", [0, 2])
def test_a_transport_that_sums_what_arrives_gives_the_bits_of_exchange_and_sum(zero, node):
    layout = Layout(dp=4, ep=2, node=node)
    sync = Sync(gradients=Wire.BF16, bucket=SMALL, zero=zero)
    expected = trained(sync, layout, lambda transport: transport)
    assert first_difference(trained(sync, layout, Summing), expected) is None
    forgetful = trained(sync, layout, partial(Summing, forgets=True))
    assert first_difference(forgetful, expected) is not None


@pytest.mark.parametrize("wire", [Wire.FP32, Wire.BF16_RING])
def test_other_wires_ask_it_for_no_such_sum(wire):
    made: list[Summing] = []

    def wrapped(transport: Transport) -> Transport:
        made.append(Summing(transport))
        return made[-1]

    trained(Sync(gradients=wire, bucket=SMALL), Layout(dp=2), wrapped)
    assert [one.sums for one in made] == [0, 0]


# ---- processes -----------------------------------------------------------------------------------


def moments_of_rank(rank: int, layout: Layout, sync: Sync) -> torch.Tensor:
    mesh = Mesh(dp=layout.dp, sp=layout.sp, ep=layout.ep, node=layout.node)
    transport = GlooTransport(mesh, timeout_seconds=30)
    plan = plan_of(sync, precision="float32")(layout, rank)
    made = build(plan, bodies=BODIES, transport=transport, device=torch.device("cpu"))
    initialise(made.state, seed=0)
    micro_batches = work().batches(1)
    made.train(
        [share(plan, micro_batches[m]) for m in local_micro_batches(plan)],
        divisor=count_targets(micro_batches),
        rates=Rates(lr=1e-2, weight_decay=0.1, step=1),
    )
    transport.close()
    return owned(made)


def owned(stage: Stage) -> torch.Tensor:
    """Weights and moments that a rank owns, and every parameter that it holds."""
    state = [values for _, _, values in stage.state.shards()]
    held = [stage.state.statics[f"param:{p.name}"].flatten() for p in stage.step.parameters]
    return torch.cat([*state, *held])


@pytest.mark.parametrize("wire", [Wire.BF16, Wire.BF16_RING])
def test_processes_over_gloo_give_the_bits_of_stacked_ranks(wire):
    layout, sync = Layout(dp=4, ep=2, node=2), Sync(gradients=wire, bucket=SMALL)
    ranks = stack(plan_of(sync, precision="float32"), layout, bodies=BODIES)
    train(ranks, work(steps=1))
    found = run_ranks(4, moments_of_rank, layout, sync)
    for values, stage in zip(found, ranks.stages, strict=True):
        assert torch.equal(values, owned(stage))


# ---- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", Wire)
@pytest.mark.parametrize("node", [0, 2, 4])
@pytest.mark.parametrize("zero", [1, 2])
def test_every_wire_brings_the_bytes_that_its_program_says(node, wire, zero):
    layout = Layout(dp=4, ep=2, node=node)
    counters: list[CountingTransport] = []

    def counted(transport) -> CountingTransport:
        counters.append(CountingTransport(transport))
        return counters[-1]

    def choices(step: int, micro_batch: int, layer: int):
        shape = models.FAMILIES["mixtral"].shape
        tokens = models.SEQUENCE * models.MICRO_BATCH
        return balanced(tokens, shape.experts, shape.top_k, 10 * micro_batch + layer)

    sync = Sync(gradients=wire, bucket=SMALL, zero=zero)
    plans = plan_of(sync, precision="bfloat16", replay=True)
    ranks = stack(plans, layout, bodies=BODIES, wire=counted)
    train(ranks, replace(work(steps=1), routing=choices))
    for stage, counter in zip(ranks.stages, counters, strict=True):
        assert counter.counts() == predict(stage.step, partial(choices, 1))


def test_a_wire_of_half_the_width_brings_half_the_bytes_between_nodes_and_no_more_inside():
    def received(wire: Wire) -> dict[str, int]:
        plan = plan_of(Sync(gradients=wire), precision="bfloat16")(Layout(dp=4, node=2), 0)
        found = predict(training_step(plan), lambda *_: None)
        return {axis: n for (axis, _, label), n in found.items() if label == "gradients"}

    whole, half, ring = (received(wire) for wire in Wire)
    assert half["dense_inter"] * 2 == whole["dense_inter"]
    assert ring["dense_inter"] == half["dense_inter"]
    assert half["dense_intra"] == whole["dense_intra"] > 0


# ---- sabotage ------------------------------------------------------------------------------------


def test_a_dropped_sum_between_nodes_is_told_apart():
    """The control: a rank that keeps the sum of its own node once."""
    ranks = iter(range(4))
    plans = plan_of(Sync())
    broken = stack(
        plans, Layout(dp=4, node=2), bodies=BODIES, wire=lambda t: drop_nodes(t, next(ranks))
    )
    with pytest.raises(VerificationError, match="sum step 2"):
        require_agreement(train(broken, work()), run(Layout(), Sync()))

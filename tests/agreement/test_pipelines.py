"""A pipeline of any depth, order and number of chunks trains as one rank does."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from weft.comm.mesh import Mesh
from weft.comm.transports.gloo import GlooTransport
from weft.compose.plan import Plan
from weft.compose.step import training_step
from weft.errors import DeadlockError
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.parallel.sync import Sync
from weft.runtime.executor import run_together
from weft.runtime.stage import Rates, build, evaluator
from weft.runtime.state import initialise
from weft.testing import agreement, models
from weft.testing.ranks import run_ranks
from weft.testing.tolerance import relative_error

BODIES = reference_bodies()
ORDERS = [("1f1b", 1), ("interleaved", 2), ("zero_bubble", 1), ("zero_bubble", 2)]
CPU = torch.device("cpu")


def model_of(name: str, *, tied: bool) -> models.Model:
    return models.FAMILIES[name].with_shape(layers=8 if name == "mixtral" else 5, tied=tied)


def planner(model: models.Model, order: str = "serial") -> Callable[[Layout, int], Plan]:
    return partial(models.plan, model, order=order)


def with_order(layout: Layout, order: str, chunks: int) -> Layout:
    return replace(layout, pipeline=order, chunks=chunks)


def work_of(model: models.Model, steps: int = 2) -> agreement.Work:
    return agreement.Work(batches=partial(models.batches, model), steps=steps)


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, bool], agreement.Trace]:
    found = {}
    for name in ("mixtral", "deepseek"):
        for tied in (False, True):
            model = model_of(name, tied=tied)
            found[name, tied] = agreement.run_layout(
                planner(model), Layout(), work_of(model), bodies=BODIES
            )
    return found


@pytest.mark.parametrize(("order", "chunks"), ORDERS)
@pytest.mark.parametrize(
    ("name", "layout", "tied"),
    [
        ("mixtral", Layout(pp=2), True),
        ("mixtral", Layout(pp=4), False),
        ("deepseek", Layout(pp=2), False),  # five layers of two kinds: uneven stages
        ("deepseek", Layout(pp=2, sp=2, ep=2), True),
    ],
    ids=lambda x: x.name() if isinstance(x, Layout) else str(x),
)
def test_losses_gradients_and_state_are_those_of_one_rank(name, layout, order, chunks, tied, alone):
    model = model_of(name, tied=tied)
    if chunks > 1 and layout.pp * chunks > model.shape.layers:
        pytest.skip("fewer layers than stages")
    found = agreement.run_layout(
        planner(model), with_order(layout, order, chunks), work_of(model), bodies=BODIES
    )
    agreement.require_agreement(found, alone[name, tied])


def test_data_parallel_pipelines_agree_too(alone):
    model = model_of("mixtral", tied=True)
    found = agreement.run_layout(
        planner(model), Layout(pp=2, dp=2, ep=2), work_of(model), bodies=BODIES
    )
    agreement.require_agreement(found, alone["mixtral", True])


@pytest.mark.parametrize(("order", "chunks"), ORDERS)
def test_pipelines_that_sum_gradients_in_shards_agree_too(order, chunks, alone):
    model = model_of("mixtral", tied=True)

    def sharded(layout: Layout, rank: int) -> Plan:
        return replace(planner(model)(layout, rank), sync=Sync(zero=2))

    layout = with_order(Layout(pp=2, dp=2), order, chunks)
    found = agreement.run_layout(sharded, layout, work_of(model), bodies=BODIES)
    agreement.require_agreement(found, alone["mixtral", True])


@pytest.mark.parametrize(("order", "chunks"), ORDERS)
def test_overlapped_layers_give_the_bits_of_serial_ones(order, chunks):
    model, layout = model_of("mixtral", tied=False).with_shape(layers=4), Layout(pp=2, sp=2, ep=2)
    serial, overlapped = (
        agreement.run_layout(
            planner(model, word),
            with_order(layout, order, chunks),
            work_of(model),
            bodies=BODIES,
        )
        for word in ("serial", "overlapped")
    )
    assert agreement.first_difference(overlapped, serial) is None


@pytest.mark.parametrize(("pp", "order", "chunks"), [(2, "interleaved", 2), (4, "zero_bubble", 1)])
def test_over_gloo_the_bits_are_those_of_stacked(pp, order, chunks):
    model = model_of("mixtral", tied=True)
    layout = with_order(Layout(pp=pp), order, chunks)
    stacked = agreement.run_layout(planner(model), layout, work_of(model), bodies=BODIES)
    for losses in run_ranks(pp, gloo_rank, layout):
        assert tuple(losses) == stacked.losses


def gloo_rank(rank: int, layout: Layout) -> list[float]:
    transport = GlooTransport(Mesh(pp=layout.pp), timeout_seconds=20)
    model = model_of("mixtral", tied=True)
    plan, work = planner(model)(layout, rank), work_of(model)
    stage = build(plan, bodies=BODIES, transport=transport, device=CPU)
    initialise(stage.state, seed=0)
    losses = []
    for number in range(1, work.steps + 1):
        micro_batches = work.batches(number)
        batches = [agreement.share(plan, m) for m in micro_batches]
        rates = Rates(lr=work.lr, weight_decay=work.weight_decay, step=number)
        divisor = agreement.count_targets(micro_batches)
        losses.append(float(stage.train(batches, divisor=divisor, rates=rates)["stats"][0]))
    transport.close()
    return losses


@pytest.mark.parametrize(("order", "chunks"), [("1f1b", 1), ("interleaved", 2)])
def test_a_pipeline_evaluates_as_one_rank_does(order, chunks):
    model = model_of("mixtral", tied=True)
    batch = models.batches(model, 1)[0]
    totals = []
    for layout in (Layout(), with_order(Layout(pp=2), order, chunks)):
        ranks = agreement.stack(planner(model), layout, bodies=BODIES)
        evaluators = [evaluator(s, bodies=BODIES, device=CPU) for s in ranks.stages]
        environments = [
            {"divisor": 7.0, **agreement.share(s.plan, batch).environment(0)} for s in ranks.stages
        ]
        run_together([e.bound for e in evaluators], environments, ranks.world.pending)
        totals.append(sum(float(e.stats[0]) for e in evaluators))
    assert relative_error(*map(torch.tensor, totals)) < 1e-14


def test_a_stage_that_forgets_its_sends_is_a_deadlock_that_names_the_ranks():
    """The control: rank 0 loses its sends, and rank 1 waits for what never comes."""
    model = model_of("mixtral", tied=False)
    ranks = agreement.stack(planner(model), Layout(pp=2), bodies=BODIES)
    first, second = ranks.stages
    kept = tuple(
        bound
        for bound, instance in zip(first.bound.instances, first.step.instances, strict=True)
        if instance.template not in ("send.forward", "sent")
    )
    mute = replace(first, bound=replace(first.bound, instances=kept))
    with pytest.raises(DeadlockError) as error:
        agreement.train_step(replace(ranks, stages=(mute, second)), work_of(model), 1)
    message = str(error.value)
    assert "rank 0 waits for x, rank 1 waits for x" in message
    assert "axis pp lane forward call 0: receive 'activations'" in message


def test_a_swapped_chunk_is_not_the_model(alone):
    """The control: a rank that runs its two chunks in the other's place."""
    model = model_of("mixtral", tied=False)
    ranks = agreement.stack(
        planner(model), with_order(Layout(pp=2), "interleaved", 2), bodies=BODIES
    )
    statics = ranks.stages[0].state.statics
    for name in ("qkv", "out"):
        one, other = statics[f"param:layers.0.{name}"], statics[f"param:layers.4.{name}"]
        one_values = one.clone()
        one.copy_(other)
        other.copy_(one_values)
    found = agreement.train(ranks, work_of(model, steps=1))
    assert abs(found.losses[0] - alone["mixtral", False].losses[0]) > 1e-6


def test_every_rank_has_the_checked_pieces_of_one_pipeline():
    model = model_of("mixtral", tied=False)
    steps = [training_step(planner(model)(Layout(pp=4), rank)) for rank in range(4)]
    owned = [p.name for step in steps for p in step.parameters]
    whole = training_step(planner(model)(Layout(), 0)).parameters
    assert sorted(owned) == sorted(p.name for p in whole)

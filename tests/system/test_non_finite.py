"""A loss or a gradient that is not finite: no rank takes the step, and the run goes on."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from tests.system.conftest import Recipe
from torch import Tensor

from weft.checkpoint.prune import list_checkpoints
from weft.checkpoint.verify import read_manifest
from weft.comm.mesh import Mesh
from weft.comm.transports.stacked import StackedWorld
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.runtime import backends
from weft.runtime.executor import Environment, run_together
from weft.runtime.stage import Rates, Stage, build
from weft.runtime.state import initialise
from weft.telemetry import events, metrics
from weft.testing import agreement, models
from weft.testing.kill import Run, outcome
from weft.trainer import rank, session
from weft.trainer.feed import Feed
from weft.trainer.record import Stopwatch, read, record

CPU = torch.device("cpu")
MODEL = models.mixtral_like()

Body = Callable[..., object]


class Poison:
    """Wraps a body: while it is armed, one element of its first result is this value."""

    def __init__(self, body: Body, value: float) -> None:
        self.body, self.value, self.armed = body, value, False

    def __call__(self, *inputs: object, **attributes: object) -> object:
        made = self.body(*inputs, **attributes)
        if self.armed:
            first = made[0] if isinstance(made, tuple) else made
            assert isinstance(first, Tensor)
            first.view(-1)[0] = self.value
        return made


def two_ranks(poisoned: str, value: float, **others: Body) -> tuple[agreement.Stack, Poison]:
    """Two data-parallel ranks, of which the second has a body that can be poisoned."""
    layout = Layout(dp=2)
    world = StackedWorld(Mesh(dp=2, sp=1, ep=1))
    honest = {**reference_bodies(), **others}
    poison = Poison(honest[poisoned], value)
    stages: list[Stage] = []
    for number, bodies in enumerate((honest, {**honest, poisoned: poison})):
        plan = models.plan(MODEL, layout, number, order="overlapped")
        stages.append(build(plan, bodies=bodies, transport=world.transport(number), device=CPU))
        initialise(stages[-1].state, seed=0)
    return agreement.Stack(stages=tuple(stages), world=world), poison


def train_step(ranks: agreement.Stack, step: int) -> Tensor:
    """One step on both ranks; its statistics, which both have the same bits of."""
    micro_batches = models.batches(MODEL, step)
    rates = Rates(lr=1e-2, weight_decay=0.1, step=step)
    environments = [
        stage.environment(
            [
                agreement.share(stage.plan, micro_batches[m])
                for m in agreement.local_micro_batches(stage.plan)
            ],
            divisor=agreement.count_targets(micro_batches),
            rates=rates,
        )
        for stage in ranks.stages
    ]
    run_together([stage.bound for stage in ranks.stages], environments, ranks.world.pending)
    for key in ("stats", "verdict"):
        first, second = (environment[key].view(torch.int64) for environment in environments)
        assert torch.equal(first, second), key  # as bits: a NaN is no equal of itself
    return environments[0]["stats"].clone()


def bits(ranks: agreement.Stack) -> list[Mapping[str, Tensor]]:
    """Everything a step may change, on every rank."""
    kept = ("bucket:", "master:", "mean:", "square:", "state:")
    return [
        {k: v.clone() for k, v in stage.state.statics.items() if k.startswith(kept)}
        for stage in ranks.stages
    ]


def same(one: list[Mapping[str, Tensor]], other: list[Mapping[str, Tensor]]) -> bool:
    return all(torch.equal(a[k], b[k]) for a, b in zip(one, other, strict=True) for k in a)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("poisoned", ["qkv_project", "expert_down.wgrad", "attention.dgrad"])
def test_no_rank_takes_a_step_that_is_not_finite_on_one(poisoned: str, value: float) -> None:
    ranks, poison = two_ranks(poisoned, value)
    train_step(ranks, 1)
    before = bits(ranks)
    poison.armed = True
    statistics = train_step(ranks, 2)
    poison.armed = False
    assert not math.isfinite(float(statistics[:4].sum()))
    assert same(bits(ranks), before)
    after = train_step(ranks, 3)
    assert torch.isfinite(after).all()
    assert not same(bits(ranks), before)
    agreement.require_replicas(ranks.stages, "after step 3")


def test_without_the_verdict_the_step_would_be_taken() -> None:
    ranks, poison = two_ranks("qkv_project", math.nan, decide=accept)
    before = bits(ranks)
    poison.armed = True
    train_step(ranks, 1)
    assert not same(bits(ranks), before)


def accept(statistics: Tensor, *, clip_norm: float) -> Tensor:
    return statistics.new_tensor([1.0, 0.0])


def test_the_record_says_skipped() -> None:
    (stage,) = agreement.stack(
        lambda layout, number: models.plan(MODEL, layout, number),
        Layout(),
        bodies=reference_bodies(),
    ).stages
    for value, skipped in ((1.0, False), (math.nan, True), (math.inf, True)):
        statistics = torch.full_like(stage.state.stats, 1.0)
        statistics[:4] = value
        verdict = torch.tensor([1.0, float(skipped)])
        results: Environment = {"stats": statistics, "verdict": verdict}
        reading = read(
            results,
            step=1,
            tokens=8,
            lr=1e-3,
            watch=Stopwatch(CPU),
            exposed_seconds=0.0,
            starved_seconds=0.0,
        )
        line = record(reading, stage.plan, CPU)
        assert line["skipped"] is skipped
        assert (line["loss"] is None) == skipped
        json.dumps(line, allow_nan=False)  # other readers of JSON know no NaN


# ---- the whole run ----


def poison_step_5_of_rank_1() -> None:
    """Tampers with the second rank: once, its loss is infinite."""
    honest = session.open_session

    def open_session(config, place):
        made = honest(config, place)
        bound, calls = made.stage.bound, iter(range(1, 1000))

        class Bound:
            def run(self, environment: Environment) -> Environment:
                if next(calls) == 5:
                    environment["divisor"] = 0.0  # the loss of this rank is infinite
                return bound.run(environment)

        if place.rank == 1:
            object.__setattr__(made.stage, "bound", Bound())
        return made

    rank.open_session = open_session


def test_a_run_skips_the_step_and_goes_on(recipe: Recipe) -> None:
    config = recipe("run", "parallel.dp=2", "train.steps=8", "train.eval_every=8")
    run = Run(config, tamper=poison_step_5_of_rank_1)
    assert run.wait() == 0, run.output.read_text()
    lines = metrics.read(Path(config.train.run_dir) / metrics.FILE)
    skipped = {r["step"]: r["skipped"] for r in lines if "skipped" in r}
    assert skipped == {step: step == 5 for step in range(1, 9)}
    assert [r["loss"] for r in lines if r["step"] == 5] == [None]
    assert outcome(run.folder).validation[8] < 6.0
    assert "SKIPPED: loss or gradient not finite" in run.output.read_text()


# ---- what a recipe may ask for ----

BAD_BATCH = 5  # of the sixth step; its second micro-batch is that of the second rank


def poison_a_batch() -> None:
    """Tampers with the second rank: attention is not a number wherever one batch is in it."""
    armed = []
    stage, bodies = Feed.stage, backends.bodies

    def stage_and_arm(feed, plan, read, device):
        armed[:] = [True] if read.step == BAD_BATCH and plan.rank == 1 else []
        return stage(feed, plan, read, device)

    def poison(table):
        made = dict(bodies(table))
        honest, calls = made["qkv_project"], iter(range(10**9))

        def project(*inputs, **attributes):
            result = honest(*inputs, **attributes)
            if armed and next(calls) % 4 == 3:  # the second layer of its second micro-batch
                result.view(-1)[0] = math.nan
            return result

        made["qkv_project"] = project
        return made

    Feed.stage = stage_and_arm
    backends.bodies = poison


def run_poisoned(recipe: Recipe, policy: str) -> tuple[Run, int, list[dict]]:
    settings = ("parallel.dp=2", "train.steps=10", "train.eval_every=10", "train.log_every=1")
    run = Run(recipe("run", *settings, f"train.on_non_finite={policy}"), tamper=poison_a_batch)
    code = run.wait()
    return run, code, events.read(run.folder)


FIRST = "first in qkv_project (moe.forward) of layer 1, micro-batch 3, on rank 1"


def test_a_run_that_is_to_stop_stops_and_names_the_place(recipe: Recipe) -> None:
    run, code, told = run_poisoned(recipe, "stop")
    assert code == 1
    assert f"step 6: loss or gradient not finite, {FIRST}" in run.output.read_text()
    (finding,) = [event for event in told if event["event"] == "not_finite"]
    assert (finding["step"], finding["rank"], finding["micro_batch"]) == (6, 1, 3)


def test_a_run_that_is_to_skip_goes_on(recipe: Recipe) -> None:
    run, code, _ = run_poisoned(recipe, "skip")
    assert code == 0
    assert FIRST in run.output.read_text()
    assert len(outcome(run.folder).losses) == 10


def test_a_run_that_is_to_go_back_leaves_the_batches_out(recipe: Recipe) -> None:
    run, code, told = run_poisoned(recipe, "rollback")
    assert code == 0, run.output.read_text()
    (back,) = [event for event in told if event["event"] == "rollback"]
    assert (back["step"], back["bad_step"], back["batches_skipped"]) == (4, 6, 2)
    lines = [r for r in metrics.read(run.folder / metrics.FILE) if "loss" in r]
    assert [r["step"] for r in lines] == list(range(1, 11))
    assert not any(r["skipped"] for r in lines)
    newest = list_checkpoints(run.folder)[0]
    assert read_manifest(newest).data["next_step"] == 12

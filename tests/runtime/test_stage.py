from dataclasses import replace

import pytest
import torch

from weft.comm.mesh import Mesh
from weft.comm.transports.stacked import StackedWorld
from weft.compose.plan import load_places
from weft.ops.registry import reference_bodies
from weft.runtime.stage import Rates, Stage, build, evaluator
from weft.runtime.state import initialise
from weft.testing import agreement, models

CPU = torch.device("cpu")
RATES = Rates(lr=1e-2, weight_decay=0.1, step=1)


def one_rank(family: str = "mixtral", **changes) -> Stage:
    plan = replace(models.plan(models.FAMILIES[family]), **changes)
    transport = StackedWorld(Mesh()).transport(0)
    stage = build(plan, bodies=reference_bodies(), transport=transport, device=CPU)
    initialise(stage.state, seed=0)
    return stage


def batches(stage: Stage, step: int = 1):
    made = models.batches(models.mixtral_like(), step)
    return [agreement.share(stage.plan, b) for b in made], agreement.count_targets(made)


def parameters(stage: Stage) -> dict[str, torch.Tensor]:
    statics = stage.state.statics
    return {p.name: statics[f"param:{p.name}"].clone() for p in stage.step.parameters}


def test_a_step_lowers_the_loss_of_its_own_batch():
    stage = one_rank()
    data, divisor = batches(stage)
    losses = []
    for step in range(1, 9):
        result = stage.train(data, divisor=divisor, rates=RATES._replace(step=step))
        losses.append(float(result["stats"][0]))
    assert losses[-1] < losses[0] - 0.5


def test_a_step_returns_its_results_alone():
    stage = one_rank()
    data, divisor = batches(stage)
    assert set(stage.train(data, divisor=divisor, rates=RATES)) == {"stats", "verdict", "divisor"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    stage = one_rank()
    stage.state.statics["param:norm"][0] = bad
    before = parameters(stage)
    data, divisor = batches(stage)
    verdict = stage.train(data, divisor=divisor, rates=RATES)["verdict"]
    assert float(verdict[1]) == 1
    for name, values in parameters(stage).items():
        torch.testing.assert_close(values, before[name], rtol=0, atol=0, equal_nan=True)


def test_a_refused_step_leaves_no_trace_in_the_next():
    clean, stage = one_rank(), one_rank()
    data, divisor = batches(stage)
    refused = stage.train(data, divisor=float("nan"), rates=RATES)
    assert float(refused["verdict"][1]) == 1
    results = [s.train(data, divisor=divisor, rates=RATES)["stats"] for s in (clean, stage)]
    assert torch.equal(*results)
    assert all(torch.equal(v, parameters(clean)[n]) for n, v in parameters(stage).items())


def test_the_gradient_is_clipped_to_its_norm():
    update = replace(models.plan(models.mixtral_like()).update, clip_norm=0.125)
    stage = one_rank(update=update)
    data, divisor = batches(stage)
    result = stage.train(data, divisor=divisor, rates=RATES)
    norm = float(result["stats"][3]) ** 0.5
    assert float(result["verdict"][0]) == pytest.approx(0.125 / norm, rel=1e-4)


def test_loads_count_every_choice_of_the_batch():
    stage = one_rank()
    data, divisor = batches(stage)
    stats = stage.train(data, divisor=divisor, rates=RATES)["stats"]
    tokens = stage.plan.tokens * stage.plan.micro_batches
    assert stats[load_places(stage.plan.shape)].view(2, 8).sum(1).tolist() == [tokens * 2] * 2


def test_an_evaluation_gives_the_loss_that_training_starts_from():
    stage = one_rank()
    data, divisor = batches(stage)
    watch = evaluator(stage, bodies=reference_bodies(), device=CPU)
    for batch in data:
        watch.add(batch, divisor=divisor)
    total = watch.total()
    loss = float(stage.train(data, divisor=divisor, rates=RATES)["stats"][0])
    assert total == pytest.approx(loss, rel=1e-12)


def test_an_evaluation_starts_from_zero_each_time():
    stage = one_rank("deepseek")
    data, divisor = batches(stage)
    watch = evaluator(stage, bodies=reference_bodies(), device=CPU)
    totals = []
    for _ in range(2):
        watch.add(data[0], divisor=divisor)
        totals.append(watch.total())
    assert totals[0] == totals[1] > 0


def test_an_evaluation_between_steps_changes_no_bit():
    quiet, watched = one_rank(), one_rank()
    watch = evaluator(watched, bodies=reference_bodies(), device=CPU)
    for step in (1, 2):
        data, divisor = batches(quiet, step)
        results = [
            s.train(data, divisor=divisor, rates=RATES._replace(step=step))["stats"]
            for s in (quiet, watched)
        ]
        assert torch.equal(*results)
        watch.add(data[0], divisor=divisor)
        watch.total()


def test_a_replaying_stage_can_be_evaluated():
    stage = one_rank(replay=True)
    data, divisor = batches(stage)
    evaluator(stage, bodies=reference_bodies(), device=CPU).add(data[0], divisor=divisor)

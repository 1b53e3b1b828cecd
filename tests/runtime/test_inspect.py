"""The first bad number of a step is found where it was made, and looking changes nothing."""

import math

import pytest
import torch
from tests.runtime.test_stage import RATES

from weft.comm.mesh import Mesh
from weft.comm.transports.stacked import StackedWorld
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.runtime.inspect import NOWHERE, inspect, locate
from weft.runtime.stage import Stage, build
from weft.runtime.state import initialise
from weft.testing import agreement, models

CPU = torch.device("cpu")
MODEL = models.mixtral_like()


def made() -> Stage:
    plan = models.plan(MODEL, Layout(), 0)
    world = StackedWorld(Mesh())
    stage = build(plan, bodies=reference_bodies(), transport=world.transport(0), device=CPU)
    initialise(stage.state, seed=0)
    return stage


def poisoned(name: str, call: int) -> dict:
    """The reference bodies, of which one makes a bad number at that call."""
    bodies = dict(reference_bodies())
    honest, calls = bodies[name], iter(range(10_000))

    def body(*inputs, **attributes):
        made = honest(*inputs, **attributes)
        if next(calls) == call:
            (made[0] if isinstance(made, tuple) else made).view(-1)[0] = math.nan
        return made

    bodies[name] = body
    return bodies


def look(stage: Stage, bodies: dict) -> int:
    micro_batches = models.batches(MODEL, 1)
    batches = [agreement.share(stage.plan, batch) for batch in micro_batches]
    divisor = agreement.count_targets(micro_batches)
    return inspect(stage, batches, bodies=bodies, device=CPU, divisor=divisor, rates=RATES)


def test_a_sound_step_has_nothing_to_find_and_is_not_taken() -> None:
    stage = made()
    before = {
        k: v.clone()
        for k, v in stage.state.statics.items()
        if k.startswith(("m", "s")) and not k.startswith("stats")
    }
    assert look(stage, dict(reference_bodies())) == NOWHERE
    assert all(torch.equal(stage.state.statics[k], v) for k, v in before.items())


@pytest.mark.parametrize(
    ("name", "call", "layer", "micro_batch"),
    [
        ("qkv_project", 1, 1, 0),
        ("qkv_project", 2, 0, 1),
        ("expert_down", 3, 1, 1),
        ("expert_up.wgrad_first", 0, 1, 0),  # the first backward is of the last layer
        ("expert_up.wgrad", 0, 1, 1),
    ],
)
def test_the_task_its_layer_and_its_micro_batch_are_named(
    name: str, call: int, layer: int, micro_batch: int
) -> None:
    stage = made()
    number = look(stage, poisoned(name, call))
    place = locate(stage.step, number)
    assert name.partition(".")[0] in place.task
    assert (place.layer, place.micro_batch) == (layer, micro_batch)

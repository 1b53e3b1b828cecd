"""A rig runs the step of a session, on random tokens instead of a corpus."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weft.bench.rig import random_tokens, rigged
from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.runtime.stage import Rates


def test_a_rig_runs_a_whole_step(recipe, place) -> None:
    with rigged(recipe(), place) as rig:
        made = rig.stage.bound.run(rig.environment())
        assert rig.tokens == 4 * 16
        # before it has learned anything, a model is as good as a guess
        assert float(made["stats"][0]) == pytest.approx(np.log(61), rel=0.05)
        assert float(made["verdict"][1]) == 0


def test_binding_once_more_runs_the_same_step_on_the_same_state(recipe, place) -> None:
    with rigged(recipe(), place) as rig:
        first = rig.stage.bound.run(rig.environment())["stats"].clone()
    with rigged(recipe(), place) as rig:
        seen = []

        def wrap(bodies):
            return {name: spied(name, body) for name, body in bodies.items()}

        def spied(name, body):
            return lambda *inputs, **attributes: (seen.append(name), body(*inputs, **attributes))[1]

        again = rig.bound(wrap, lambda lanes: lanes).run(rig.environment())["stats"]
        assert torch.equal(first, again)
        assert {"attention", "expert_up.wgrad", "gather_params"} <= set(seen)


def test_random_tokens_fill_their_sequences_with_documents(recipe) -> None:
    batch = random_tokens(plan(recipe(), 0), seed=(0, 0), documents=3)
    assert len(batch.tokens) == len(batch.targets) == len(batch.positions) == 32
    assert len(batch.ends) == 6
    assert {16, 32} <= set(batch.ends)
    assert [int(batch.positions[end - 1]) + 1 for end in batch.ends] == np.diff(
        [0, *batch.ends]
    ).tolist()
    assert batch.tokens.max() < 61


def test_one_document_is_the_whole_sequence(recipe) -> None:
    assert random_tokens(plan(recipe(), 0), seed=(0, 0)).ends == (16, 32)


def test_tokens_depend_on_the_seed_alone(recipe) -> None:
    made = plan(recipe(), 0)
    one, same = (random_tokens(made, seed=(1, 0)).tokens for _ in range(2))
    other = random_tokens(replace(made), seed=(1, 1)).tokens
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_another_step_runs_over_the_same_state(recipe, place) -> None:
    with rigged(recipe(), place) as rig:
        serial = rig.with_step(training_step(replace(rig.plan, order="serial")))
        assert (serial.plan.order, rig.plan.order) == ("serial", "overlapped")
        assert serial.stage.state is rig.stage.state
        before = float(rig.stage.bound.run(learning(rig))["stats"][0])
        assert float(serial.stage.bound.run(serial.environment())["stats"][0]) < before  # learned


def learning(rig):
    """What a step reads that changes weights."""
    rates = Rates(lr=1e-2, weight_decay=0.0, step=1)
    return rig.stage.environment(rig.batches, divisor=float(rig.tokens), rates=rates)


def test_every_step_does_the_same_work(recipe, place) -> None:
    with rigged(recipe(), place) as rig:
        first, again = (rig.stage.bound.run(rig.environment())["stats"].clone() for _ in range(2))
        assert torch.equal(first, again)
        rig.stage.bound.run(learning(rig))  # the control
        assert not torch.equal(first, rig.stage.bound.run(rig.environment())["stats"])

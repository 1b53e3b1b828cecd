"""What is sampled is what was saved, the same each time, by one rank whatever the layout."""

from pathlib import Path

import pytest
import torch
from tests.system.conftest import Recipe
from tests.trainer.conftest import ALONE

from weft.runtime.state import initialise
from weft.trainer.recover import save_session
from weft.trainer.sample import load_oracle, sample
from weft.trainer.session import open_session

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_oracle_has_the_parameters_that_were_saved(
    recipe: Recipe, tmp_path: Path, precision: str
) -> None:
    settings = (f"train.precision={precision}", f"train.run_dir={tmp_path / 'run'}")
    session = open_session(recipe("run", *settings), ALONE)
    initialise(session.stage.state, seed=3)
    folder = save_session(session, step=1, report=print)
    elsewhere = recipe("run", *settings, "parallel.sp=2", "parallel.ep=2")
    oracle = load_oracle(elsewhere, folder, CPU)
    assert oracle.plan.layout.world == 1
    for parameter in session.stage.step.parameters:
        expected = session.stage.state.statics[f"param:{parameter.name}"]
        assert torch.equal(oracle.weights[parameter.name], expected), parameter.name


def test_a_sample_is_repeatable_and_of_its_length(recipe: Recipe) -> None:
    session = open_session(recipe("run"), ALONE)
    initialise(session.stage.state, seed=3)
    oracle = load_oracle(recipe("run"), save_session(session, step=1, report=print), CPU)
    one, same, other = (
        sample(oracle, b"weft", count=40, seed=seed, device=CPU) for seed in (1, 1, 2)
    )
    assert one == same != other
    assert one.startswith("weft")
    # 40 bytes beyond the prompt, more than the window of 32; some of them are no UTF-8
    assert 4 < len(one) <= 44


def test_at_temperature_zero_the_seed_does_not_matter(recipe: Recipe) -> None:
    session = open_session(recipe("run"), ALONE)
    initialise(session.stage.state, seed=3)
    oracle = load_oracle(recipe("run"), save_session(session, step=1, report=print), CPU)
    one, other = (
        sample(oracle, b"weft", count=12, seed=seed, device=CPU, temperature=0.0) for seed in (1, 2)
    )
    assert one == other

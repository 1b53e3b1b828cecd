"""State survives a checkpoint bit for bit; what is not the same run is refused."""

from pathlib import Path

import pytest
import torch
from tests.system.conftest import Recipe
from tests.trainer.conftest import ALONE

from weft.checkpoint.verify import read_manifest
from weft.config.run import RunConfig
from weft.errors import CheckpointError
from weft.runtime.state import initialise
from weft.trainer.recover import (
    check_same_run,
    latest,
    restore_session,
    resumable,
    save_session,
)
from weft.trainer.session import Session, open_session


def silent(text: str) -> None:
    raise AssertionError(text)


def trained(config: RunConfig, seed: int) -> Session:
    """A session whose every owned element is a number of its own."""
    session = open_session(config, ALONE)
    initialise(session.stage.state, seed=seed)
    random = torch.Generator().manual_seed(seed)
    for kind, _, tensor in session.stage.state.shards():
        if kind != "master":
            tensor.copy_(torch.rand(tensor.shape, generator=random))
    for key, tensor in session.stage.state.statics.items():
        if key.startswith("state:"):
            tensor.copy_(torch.rand(tensor.shape, generator=random))
    return session


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_everything_that_is_learned_comes_back(recipe: Recipe, precision: str) -> None:
    config = recipe("run", f"train.precision={precision}")
    one, other = trained(config, 1), trained(config, 2)
    folder = save_session(one, step=3, report=silent)
    assert restore_session(other, folder) == 3
    kept = ("bucket:", "master:", "mean:", "square:", "state:")
    for key, tensor in one.stage.state.statics.items():
        if key.startswith(kept):
            assert torch.equal(tensor, other.stage.state.statics[key]), key


def test_parameters_follow_their_masters(recipe: Recipe) -> None:
    session = trained(recipe("run", "train.precision=bfloat16"), 1)
    folder = save_session(session, step=1, report=silent)
    initialise(session.stage.state, seed=9)
    restore_session(session, folder)
    for bucket in session.stage.step.buckets:
        master = session.stage.state.statics[f"master:{bucket.name}"]
        flat = session.stage.state.statics[f"bucket:{bucket.name}"]
        assert torch.equal(flat, master.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("model.hidden=64", "model.hidden = 32, the recipe says 64"),
        ("optim.beta2=0.9", "optim.beta2 = 0.95, the recipe says 0.9"),
        ("data.sequence=64", "data.sequence = 32, the recipe says 64"),
        ("data.validation_bytes=900", "data.validation_bytes = 700, the recipe says 900"),
        ("train.micro_batch=2", "train.micro_batch = 1, the recipe says 2"),
        ("train.seed=1", "train.seed = 0, the recipe says 1"),
        ("train.precision=float64", 'train.precision = "float32", the recipe says "float64"'),
    ],
)
def test_another_run_is_refused_with_the_key_that_differs(
    recipe: Recipe, override: str, where: str
) -> None:
    session = trained(recipe("run"), 1)
    folder = save_session(session, step=3, report=silent)
    with pytest.raises(CheckpointError, match=where):
        check_same_run(folder, read_manifest(folder), recipe("run", override), session.feed.digest)


@pytest.mark.parametrize(
    "override",
    [
        "parallel.dp=2",
        "parallel.sp=2",
        "overlap.order=serial",
        "train.steps=99",
        "train.checkpoint_every=7",
        "data.path=/moved",
    ],
)
def test_layout_length_and_place_may_change(recipe: Recipe, override: str) -> None:
    session = trained(recipe("run"), 1)
    folder = save_session(session, step=3, report=silent)
    check_same_run(folder, read_manifest(folder), recipe("run", override), session.feed.digest)


def test_another_corpus_and_a_run_that_is_over_are_refused(recipe: Recipe) -> None:
    session = trained(recipe("run"), 1)
    folder = save_session(session, step=3, report=silent)
    manifest, digest = read_manifest(folder), session.feed.digest
    with pytest.raises(CheckpointError, match="trained on a corpus with digest"):
        check_same_run(folder, manifest, recipe("run"), "0" * 64)
    with pytest.raises(CheckpointError, match=r"has finished step 3, the recipe says .* = 2"):
        check_same_run(folder, manifest, recipe("run", "train.steps=2"), digest)


def test_auto_takes_the_newest_good_one_and_says_what_it_passes_over(recipe: Recipe) -> None:
    config = recipe("run")
    session = trained(config, 1)
    digest, said = session.feed.digest, []
    assert resumable(config, "auto", digest, silent) is None
    good = save_session(session, step=3, report=silent)
    bad = save_session(session, step=4, report=silent)
    assert latest(Path(config.train.run_dir), silent) == bad
    shard = next(bad.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    assert resumable(config, "auto", digest, said.append) == good
    assert len(said) == 1
    assert "has changed since it was written" in said[0]
    assert resumable(config, str(good), digest, silent) == good
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        resumable(config, str(bad), digest, silent)


def test_never_starts_anew_only_where_there_is_nothing(recipe: Recipe) -> None:
    config = recipe("run")
    session = trained(config, 1)
    assert resumable(config, "never", session.feed.digest, silent) is None
    save_session(session, step=3, report=silent)
    with pytest.raises(CheckpointError, match="holds checkpoints of an earlier run"):
        resumable(config, "never", session.feed.digest, silent)

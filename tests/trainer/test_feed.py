"""Every rank gets its share of the same micro-batches, and all of them get as many."""

import dataclasses
from collections import Counter

import pytest
import torch
from tests.system.conftest import Recipe

from weft.compose.recipe import plan
from weft.config.run import RunConfig
from weft.errors import ConfigError, DataError
from weft.runtime.batch import Batch
from weft.trainer.feed import open_feed, split

CPU = torch.device("cpu")


def samples(batches: list[Batch]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(batch.tokens.tolist()) for batch in batches)


@pytest.mark.parametrize("dp", [2, 4])
def test_data_parallel_ranks_share_the_micro_batches_of_one_rank(recipe: Recipe, dp: int) -> None:
    alone, several = recipe("run"), recipe("run", f"parallel.dp={dp}")
    feed = open_feed(alone)
    for step in (0, 7):
        whole = samples(feed.load(plan(alone, 0), step, CPU))
        shares = [samples(feed.load(plan(several, rank), step, CPU)) for rank in range(dp)]
        assert sum(shares, Counter()) == whole
        assert {share.total() for share in shares} == {whole.total() // dp}


def test_sequence_parallel_ranks_share_the_tokens_of_a_micro_batch(recipe: Recipe) -> None:
    alone, several = recipe("run"), recipe("run", "parallel.sp=2")
    feed = open_feed(alone)
    whole = feed.load(plan(alone, 0), 0, CPU)
    halves = [feed.load(plan(several, rank), 0, CPU) for rank in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        for field in ("tokens", "targets", "positions"):
            joined = torch.cat([getattr(part, field) for part in parts])
            assert torch.equal(joined, getattr(batch, field))


@pytest.mark.parametrize("dp", [1, 2, 4])
def test_validation_counts_every_target_once_and_keeps_ranks_in_step(
    recipe: Recipe, dp: int
) -> None:
    config = recipe("run", f"parallel.dp={dp}")
    feed = open_feed(config)
    shares = [list(feed.load_validation(plan(config, rank), CPU)) for rank in range(dp)]
    assert len({len(share) for share in shares}) == 1
    counted = sum(int((batch.targets >= 0).sum()) for share in shares for batch in share)
    assert counted == feed.validation.divisor


def test_what_is_held_back_is_not_trained_on(recipe: Recipe) -> None:
    documents, digest = split(recipe("run"))
    train = {document.name for document in documents.train}
    held = {document.name for document in documents.validation}
    assert train
    assert held
    assert not train & held
    assert digest == open_feed(recipe("run")).digest


def test_a_vocabulary_without_room_for_bytes_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"model.vocab = 256: .* try model.vocab = 257"):
        open_feed(recipe("run", "model.vocab=256"))


def test_a_corpus_too_small_to_hold_anything_back_is_refused(few_steps: RunConfig) -> None:
    data = few_steps.data.model_copy(update={"validation_bytes": 10**9})
    with pytest.raises(DataError, match="no file is left for training"):
        open_feed(few_steps.model_copy(update={"data": data}))


def test_a_feed_cannot_be_changed(few_steps: RunConfig) -> None:
    feed = open_feed(few_steps)
    with pytest.raises(dataclasses.FrozenInstanceError):
        feed.digest = "another"  # pyright: ignore[reportAttributeAccessIssue]

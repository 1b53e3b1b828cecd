"""Every rank gets its share of the same micro-batches, and all of them get as many."""

import dataclasses
import json
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.system.conftest import Recipe
from torch.nn import functional

from weft.compose.recipe import plan
from weft.config.load import build, dump
from weft.config.run import RunConfig
from weft.data.batches import IGNORED
from weft.data.stream import TokenStream
from weft.data.tokenizer import train_tokenizer
from weft.errors import ConfigError, DataError
from weft.runtime.batch import Batch
from weft.trainer.feed import open_feed

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
    feed = open_feed(recipe("run"))
    train, held = (
        {
            bytes(stream.tokens[b + 1 : b + n].tolist())
            for b, n in zip(stream.begins, stream.lengths, strict=True)
        }
        for stream in feed.streams
        if isinstance(stream, TokenStream)
    )
    assert train
    assert held
    assert not train & held
    assert feed.digest == open_feed(recipe("run")).digest


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


def test_a_mixture_survives_a_recipe_file(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    mix = f'[{{path = "{folder}", weight = 3}}, {{source = "stdlib", weight = 1.5}}]'.replace(
        "3}", "3.0}"
    )
    tree = tomllib.loads(dump(recipe("run")))
    del tree["data"]["source"], tree["data"]["path"]
    config = build(tree, [f"data.mix={mix}"])
    assert build(tomllib.loads(dump(config))) == config
    feed = open_feed(config)
    assert feed.baseline() is None
    assert len({component for component, _, _ in feed.training.samples(0)}) == 2


def masked(recipe: Recipe, tmp_path: Path, *overrides: str) -> RunConfig:
    """The tiny recipe on prompts and answers, some samples of which ask for nothing."""
    lines = [json.dumps({"q": "x" * (i % 70), "a": "y" * (i % 9 + 1)}) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    fields = ("data.source=jsonl", "data.prompt_field=q", "data.answer_field=a")
    # cut as a stream, so that some ranks and some micro-batches have no answer at all
    own = (
        f"data.path={tmp_path / 'a.jsonl'}", "data.validation_bytes=40", "train.steps=2",
        "data.packing=stream",
    )  # fmt: skip
    return recipe("run", *fields, *own, *overrides)


@pytest.mark.parametrize("split", [(), ("parallel.dp=2",), ("parallel.dp=4",), ("parallel.sp=2",)])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_the_loss_of_a_step_is_the_mean_over_its_answers(
    recipe: Recipe, tmp_path: Path, split: tuple[str, ...], micro_batch: int
) -> None:
    if micro_batch == 2 and "parallel.dp=4" in split:
        micro_batch = 1
    config = masked(recipe, tmp_path, *split, f"train.micro_batch={micro_batch}")
    feed, vocab = open_feed(config), config.model.vocab
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(vocab, vocab, generator=generator, dtype=torch.float64)
    for step in range(6):
        whole = [feed.training.load(step, m) for m in range(feed.training.num_micro_batches)]
        tokens, targets = (
            torch.from_numpy(np.concatenate([getattr(b, name) for b in whole]))
            for name in ("tokens", "targets")
        )
        expected = functional.cross_entropy(table[tokens], targets, ignore_index=IGNORED)
        divisor = feed.training.divisor(step)
        assert divisor == int((targets >= 0).sum())
        total = torch.zeros((), dtype=torch.float64)
        for rank in range(config.parallel.ranks):
            for batch in feed.load(plan(config, rank), step, CPU):
                total += functional.cross_entropy(
                    table[batch.tokens], batch.targets, ignore_index=IGNORED, reduction="sum"
                )
        assert torch.allclose(total / divisor, expected, rtol=1e-12)
        assert divisor < len(targets)


def test_control_a_mean_of_means_is_not_the_mean(recipe: Recipe, tmp_path: Path) -> None:
    feed = open_feed(masked(recipe, tmp_path))
    counts = [
        int((feed.training.load(0, m).targets >= 0).sum())
        for m in range(feed.training.num_micro_batches)
    ]
    assert len(set(counts)) > 1  # so that each micro-batch's own mean would weigh them wrongly


def test_a_tokenizer_of_a_file_is_checked_and_told_by_the_byte(
    recipe: Recipe, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    path.write_text(train_tokenizer(iter(["warp weft loom"] * 9), vocab=262).content)
    config = recipe("run", f"data.tokenizer={path}", "model.vocab=300")
    feed = open_feed(config)
    assert feed.baseline() is None
    assert feed.validation.divisor < feed.validation_text_bytes
    per_byte = feed.nats_per_byte(2.0)
    assert per_byte is not None
    assert per_byte * feed.validation_text_bytes == pytest.approx(2.0 * feed.validation.divisor)
    assert open_feed(recipe("run")).nats_per_byte(2.0) is None
    assert feed.digest != open_feed(recipe("run")).digest
    with pytest.raises(ConfigError, match=f"t.json needs {feed.tokenizer.size} ids"):
        open_feed(recipe("run", f"data.tokenizer={path}"))

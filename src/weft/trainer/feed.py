"""What a run eats: the corpus of its recipe as training and validation batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from weft.compose.plan import Plan
from weft.config.run import RunConfig
from weft.data.batches import Batches, MicroBatch, ValidationBatches
from weft.data.corpus import Split, read_corpus, split_corpus
from weft.data.order import micro_batches
from weft.data.tokens import VOCABULARY, TokenStream, encode
from weft.errors import ConfigError
from weft.runtime.batch import Batch, stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Feed:
    """Both streams of a run, cut into batches, and the digest of the corpus behind them."""

    training: Batches
    validation: ValidationBatches
    streams: tuple[TokenStream, TokenStream]
    digest: str

    def load(self, plan: Plan, step: int, device: torch.device) -> list[Batch]:
        """This rank's share of the micro-batches of a step."""
        dp_rank = plan.rank // plan.layout.sp
        mine = micro_batches(plan.micro_batches, dp_rank=dp_rank, dp=plan.layout.dp)
        return [self._staged(plan, self.training.load(step, m), device) for m in mine]

    def load_validation(self, plan: Plan, device: torch.device) -> Iterator[Batch]:
        """This rank's share of the validation batches; all data-parallel ranks get as many."""
        dp = plan.layout.dp
        for index in range(plan.rank // plan.layout.sp, self.validation.num_micro_batches(dp), dp):
            yield self._staged(plan, self.validation.load(index), device)

    def _staged(self, plan: Plan, batch: MicroBatch, device: torch.device) -> Batch:
        sp = plan.layout.sp
        return stage(batch, sp=sp, sp_rank=plan.rank % sp, device=device)


def split(config: RunConfig) -> tuple[Split, str]:
    """The documents of a recipe's corpus, those held back apart, and the corpus digest.

    Raises:
        DataError: the corpus cannot be used.
    """
    corpus = read_corpus(config.data.source, config.data.path)
    held = config.data.validation_bytes
    return split_corpus(corpus, seed=config.train.seed, validation_bytes=held), corpus.digest


def open_feed(config: RunConfig) -> Feed:
    """The batches of a recipe.

    Raises:
        ConfigError: the vocabulary has no room for the tokenizer.
        DataError: the corpus cannot be used.
    """
    if config.model.vocab < VOCABULARY:
        raise ConfigError(
            f"model.vocab = {config.model.vocab}: bytes and the end of text need {VOCABULARY} ids; "
            f"try model.vocab = {VOCABULARY}"
        )
    documents, digest = split(config)
    train, held = (
        encode([d.content for d in part]) for part in (documents.train, documents.validation)
    )
    return Feed(
        training=Batches(
            train,
            sequence=config.data.sequence,
            global_batch=config.train.global_batch,
            micro_batch=config.train.micro_batch,
            seed=config.train.seed,
        ),
        validation=ValidationBatches(
            held, sequence=config.data.sequence, micro_batch=config.train.micro_batch
        ),
        streams=(train, held),
        digest=digest,
    )

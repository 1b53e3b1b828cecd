"""What a run eats: the corpus of its recipe as training and validation batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from weft.compose.plan import Plan
from weft.compose.stage import chunks_of
from weft.config.run import RunConfig
from weft.data import ngram
from weft.data.batches import Batches, MicroBatch, ValidationBatches
from weft.data.mixture import Mixture
from weft.data.opening import count_bytes, open_data
from weft.data.order import micro_batches
from weft.data.stream import TokenStream
from weft.data.tokenizer import BYTES, Tokenizer, open_tokenizer
from weft.errors import ConfigError
from weft.runtime.batch import Batch, stage

_BASELINE_TOKENS = 1 << 28  # about ten seconds to count; more would delay the end of a run


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """The micro-batches of a step that a rank takes part in, on the host, and what the summed loss
    of all ranks is divided by.
    """

    step: int
    batches: list[MicroBatch]
    divisor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Feed:
    """Both streams of a run, cut into batches, and the digest of the corpus behind them."""

    training: Batches
    validation: ValidationBatches
    streams: tuple[TokenStream | Mixture, TokenStream]
    tokenizer: Tokenizer
    digest: str
    skipped: tuple[str, ...]
    validation_text_bytes: int

    def load(self, plan: Plan, step: int, device: torch.device) -> list[Batch]:
        """This rank's share of the micro-batches of a step."""
        return self.stage(plan, self.read(plan, step), device)

    def read(self, plan: Plan, step: int) -> Read:
        """What a rank has to know of the text of a step."""
        dp_rank, dp = plan.layout.dp_rank(plan.rank), plan.layout.dp
        mine = micro_batches(plan.micro_batches, dp_rank=dp_rank, dp=dp)
        return Read(
            step=step,
            batches=[self.training.load(step, m) for m in mine],
            divisor=float(self.training.divisor(step)),
        )

    def stage(self, plan: Plan, read: Read, device: torch.device) -> list[Batch]:
        """This rank's share of the micro-batches of a step, on its device."""
        return [self._staged(plan, batch, device) for batch in read.batches]

    def load_validation(self, plan: Plan, device: torch.device) -> Iterator[Batch]:
        """This rank's share of the validation batches; all data-parallel ranks get as many."""
        dp_rank, dp = plan.layout.dp_rank(plan.rank), plan.layout.dp
        for index in range(dp_rank, self.validation.num_micro_batches(dp), dp):
            yield self._staged(plan, self.validation.load(index), device)

    def nats_per_byte(self, nats_per_token: float) -> float | None:
        """A validation loss by the bytes of its text; None where tokens are bytes already."""
        if self.tokenizer.name == BYTES:
            return None
        return nats_per_token * self.validation.divisor / max(1, self.validation_text_bytes)

    def baseline(self) -> float | None:
        """The loss of a trigram on the same text, for one corpus of bytes of a moderate size."""
        train, held = self.streams
        if self.tokenizer.name != BYTES or isinstance(train, Mixture):
            return None
        if train.num_tokens > _BASELINE_TOKENS or train.num_targets < train.num_tokens:
            return None
        return ngram.loss(ngram.fit(train), held)

    def _staged(self, plan: Plan, batch: MicroBatch, device: torch.device) -> Batch:
        chunks = chunks_of(plan)
        return stage(
            batch, plan.share, device=device, embeds=chunks[0].first, has_head=chunks[-1].last
        )


def open_feed(config: RunConfig) -> Feed:
    """The batches of a recipe.

    Raises:
        ConfigError: the vocabulary has no room for the tokenizer.
        DataError: the corpus cannot be used.
    """
    tokenizer = open_tokenizer(config.data.tokenizer)
    check_vocabulary(config.model.vocab, tokenizer)
    opened = open_data(config.data, tokenizer, seed=config.train.seed)
    return Feed(
        training=Batches(
            opened.training,
            sequence=config.data.sequence,
            global_batch=config.train.global_batch,
            micro_batch=config.train.micro_batch,
            seed=config.train.seed,
            packing=config.data.packing,
        ),
        validation=ValidationBatches(
            opened.validation,
            sequence=config.data.sequence,
            micro_batch=config.train.micro_batch,
            packing=config.data.packing,
        ),
        streams=(opened.training, opened.validation),
        tokenizer=tokenizer,
        digest=opened.digest,
        skipped=opened.skipped,
        validation_text_bytes=count_bytes(opened.validation, tokenizer),
    )


def check_vocabulary(vocab: int, tokenizer: Tokenizer) -> None:
    """Returns when a model has a row for every token.

    Raises:
        ConfigError: it has not.
    """
    if vocab < tokenizer.size:
        name = "bytes and the end of text" if tokenizer.name == BYTES else tokenizer.name
        verb = "need" if tokenizer.name == BYTES else "needs"
        raise ConfigError(
            f"model.vocab = {vocab}: {name} {verb} {tokenizer.size} ids; "
            f"try model.vocab = {tokenizer.size}"
        )

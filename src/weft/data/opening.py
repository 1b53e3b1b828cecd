"""From the `[data]` branch of a recipe to what is trained on and what is held back.

A source of text is read whole and tokenized now; a prepared folder and Megatron's files are mapped
into memory. A mixture opens each of its components, which hold back their share each.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.config.data import DataConfig, MixConfig, components
from weft.data.corpus import nothing_left, read_corpus, split_corpus
from weft.data.document import Document, Fields, OnBad
from weft.data.mixture import Mixture, whole_weights
from weft.data.order import shuffled
from weft.data.prepared.store import open_prepared
from weft.data.sources.megatron import open_megatron
from weft.data.stream import TokenStream, concatenate, join, materialise, subset
from weft.data.tokenizer import BYTES, Tokenizer
from weft.errors import DataError

_TYPICAL_TOKEN_BYTES = 4  # of text, for tokens whose text is not at hand; decides no loss


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Opened:
    """Both sides of a corpus, its digest, and what was bad in it."""

    training: TokenStream | Mixture
    validation: TokenStream
    digest: str
    skipped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Component:
    training: TokenStream
    validation: TokenStream
    digest: str
    skipped: tuple[str, ...] = ()


def open_data(data: DataConfig, tokenizer: Tokenizer, *, seed: int) -> Opened:
    """The streams of a recipe.

    Raises:
        DataError: something cannot be read, or there is nothing to learn on one side.
    """
    parts = components(data)
    total = sum(part.weight for part in parts)
    opened = [
        _open(
            part,
            tokenizer,
            seed=seed,
            held_bytes=max(1, round(data.validation_bytes * part.weight / total)),
            on_bad=data.on_bad,
        )
        for part in parts
    ]
    for part, component in zip(parts, opened, strict=True):
        _check_targets(part, component)
    digests = [component.digest for component in opened]
    return Opened(
        training=_mixed(tuple(c.training for c in opened), tuple(p.weight for p in parts)),
        validation=opened[0].validation
        if len(opened) == 1
        else concatenate([component.validation for component in opened]),
        digest=_digest(digests, tuple(p.weight for p in parts), tokenizer),
        skipped=tuple(reason for component in opened for reason in component.skipped),
    )


def count_bytes(stream: TokenStream, tokenizer: Tokenizer) -> int:
    """The bytes of text that the targets of a small stream stand for."""
    places = zip(
        stream.begins.tolist(), stream.lengths.tolist(), stream.masked.tolist(), strict=True
    )
    return sum(
        len(tokenizer.decode(stream.tokens[b + 1 + m : b + n].tolist()).encode("utf-8", "replace"))
        for b, n, m in places
    )


def hold_back(
    stream: TokenStream, *, seed: int, validation_bytes: int, token_bytes: float
) -> tuple[TokenStream, TokenStream]:
    """Training and validation of a stream: documents drawn by the seed, the large ones last.

    Raises:
        DataError when either side would be empty.
    """
    drawn = shuffled(stream.num_documents, seed=seed, epoch=0, what="held")
    sizes = stream.lengths[drawn] * token_bytes
    drawn = np.concatenate([drawn[sizes <= validation_bytes], drawn[sizes > validation_bytes]])
    reached = np.cumsum(stream.lengths[drawn] * token_bytes)
    count = int(np.searchsorted(reached, validation_bytes)) + 1
    if count >= stream.num_documents:
        raise nothing_left(
            has_validation=True,
            found=f"{stream.num_documents} document(s) of {stream.num_tokens} tokens",
            validation_bytes=validation_bytes,
        )
    held: NDArray[np.int64] = np.sort(drawn[:count])
    kept = np.ones(stream.num_documents, np.bool_)
    kept[held] = False
    return subset(stream, np.flatnonzero(kept)), materialise(subset(stream, held))


def _open(
    part: MixConfig, tokenizer: Tokenizer, *, seed: int, held_bytes: int, on_bad: OnBad
) -> _Component:
    match part.source:
        case "prepared":
            stream, manifest = open_prepared(str(part.path), tokenizer)
            text_bytes = sum(shard.num_bytes for shard in manifest.shards)
            width, digest = text_bytes / stream.num_tokens, manifest.digest
        case "megatron":
            stream, digest = open_megatron(str(part.path), tokenizer)
            width = _TYPICAL_TOKEN_BYTES if tokenizer.name != BYTES else 1
        case source:
            corpus = read_corpus(source, part.path, fields=_fields(part), on_bad=on_bad)
            split = split_corpus(corpus, seed=seed, validation_bytes=held_bytes)
            return _Component(
                training=encode_documents(split.train, tokenizer),
                validation=encode_documents(split.validation, tokenizer),
                digest=corpus.digest,
                skipped=corpus.skipped,
            )
    training, validation = hold_back(
        stream, seed=seed, validation_bytes=held_bytes, token_bytes=width
    )
    return _Component(training=training, validation=validation, digest=digest)


def encode_documents(documents: tuple[Document, ...], tokenizer: Tokenizer) -> TokenStream:
    """Documents as a stream in memory, the targets of prompts masked."""
    contents = tokenizer.encode([document.content for document in documents])
    prompts = tokenizer.encode([document.prompt for document in documents])
    return join(
        [
            np.concatenate([prompt, content]) if len(prompt) else content
            for prompt, content in zip(prompts, contents, strict=True)
        ],
        [len(prompt) for prompt in prompts],
        end_of_text=tokenizer.end_of_text,
    )


def _fields(part: MixConfig) -> Fields:
    return Fields(text=part.text_field, prompt=part.prompt_field, answer=part.answer_field)


def _mixed(streams: tuple[TokenStream, ...], weights: tuple[float, ...]) -> TokenStream | Mixture:
    if len(streams) == 1:
        return streams[0]
    return Mixture(streams=streams, weights=whole_weights(weights))


def _digest(digests: list[str], weights: tuple[float, ...], tokenizer: Tokenizer) -> str:
    """The one digest of a run's data; of one corpus in bytes it is that of the corpus."""
    if len(digests) == 1 and tokenizer.name == BYTES:
        return digests[0]
    lines = [tokenizer.digest, *digests, *map(str, whole_weights(weights))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check_targets(part: MixConfig, component: _Component) -> None:
    for side in (component.training, component.validation):
        if not side.num_targets:
            place = Path(part.path) if part.path else part.source
            raise DataError(
                f"the data at {place} asks for nothing: every token of its training or validation "
                "is of a prompt; expected answers; check data.answer_field"
            )
